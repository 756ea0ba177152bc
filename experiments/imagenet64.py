"""Trains on ImageNet at 64x64: `python -m experiments.imagenet64 --help` says how."""

from vdm_jax.run import cli, training

if __name__ == "__main__":
    cli.main(training.train, __file__)
