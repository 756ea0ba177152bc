"""Train on a folder of pictures and evaluate on those held out.

python -m experiments.folder --workdir=DIR --config.data.path=FOLDER [--config.data.size=64
    --config.data.fit=crop] [--config.NAME=VALUE ...]
"""

from vdm_jax.run import cli
from vdm_jax.run import training as run

if __name__ == "__main__":
    cli.main(run.train, cli.CONFIGS / "folder.py", __doc__)
