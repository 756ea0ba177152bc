"""Train on your own images and evaluate on those held out.

python -m experiments.arrays --workdir=DIR --config.data.path=FILE.npz [--config.NAME=VALUE ...]
"""

from vdm_jax.run import cli, training

if __name__ == "__main__":
    cli.main(training.train, __file__, __doc__)
