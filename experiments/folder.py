"""Trains on a folder of pictures: `python -m experiments.folder --help` says how."""

from vdm_jax.run import cli, training

if __name__ == "__main__":
    cli.main(training.train, __file__)
