"""Train on cifar10 and evaluate on its test set.

python -m experiments.cifar10 --workdir=DIR [--config=FILE.py[:VARIANT]] [--config.NAME=VALUE ...]
"""

from vdm_jax.run import cli, training

if __name__ == "__main__":
    cli.main(training.train, __file__, __doc__)
