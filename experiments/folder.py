"""Train on a folder of pictures and evaluate on those held out.

python -m experiments.folder --workdir=DIR --config.data.path=FOLDER [--config.data.size=64
    --config.data.fit=crop] [--config.NAME=VALUE ...]
"""

from vdm_jax.run import cli, training

if __name__ == "__main__":
    cli.main(training.train, __file__, __doc__)
