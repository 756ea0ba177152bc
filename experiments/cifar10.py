"""Trains on CIFAR-10: `python -m experiments.cifar10 --help` says how."""

from vdm_jax.run import cli, training

if __name__ == "__main__":
    cli.main(training.train, __file__)
