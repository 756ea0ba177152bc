"""Trains on ImageNet at 32x32: `python -m experiments.imagenet32 --help` says how."""

from vdm_jax.run import cli, training

if __name__ == "__main__":
    cli.main(training.train, __file__)
