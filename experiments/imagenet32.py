"""Train on ImageNet at 32x32 and evaluate on its validation part.

python -m experiments.imagenet32 --workdir=DIR [--config=FILE.py[:VARIANT]] [--config.NAME=VALUE]
"""

from vdm_jax.run import cli
from vdm_jax.run import training as run

if __name__ == "__main__":
    cli.main(run.train, cli.CONFIGS / "imagenet32.py", __doc__)
