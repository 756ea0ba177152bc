"""Trains on photographs of this repository: `python -m experiments.photos --help` says how."""

from vdm_jax.run import cli, training

if __name__ == "__main__":
    cli.main(training.train, __file__)
