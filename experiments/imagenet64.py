"""Train on ImageNet at 64x64 and evaluate on its validation part.

python -m experiments.imagenet64 --workdir=DIR [--config=FILE.py[:VARIANT]] [--config.NAME=VALUE]
"""

from vdm_jax.run import cli, training

if __name__ == "__main__":
    cli.main(training.train, __file__, __doc__)
