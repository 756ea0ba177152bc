"""Train on mnist and evaluate on its test set.

python -m experiments.mnist --workdir=DIR [--config=FILE.py[:VARIANT]] [--config.NAME=VALUE ...]
"""

from vdm_jax.run import cli, training

if __name__ == "__main__":
    cli.main(training.train, __file__, __doc__)
