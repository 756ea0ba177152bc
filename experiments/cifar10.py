"""Train on cifar10 and evaluate on its test set.

python -m experiments.cifar10 --workdir=DIR [--config=FILE.py[:VARIANT]] [--config.NAME=VALUE ...]
"""

from vdm_jax.run import cli
from vdm_jax.run import training as run

if __name__ == "__main__":
    cli.main(run.train, cli.CONFIGS / "cifar10.py", __doc__)
