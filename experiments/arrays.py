"""Train on your own images and evaluate on those held out.

python -m experiments.arrays --workdir=DIR --config.data.path=FILE.npz [--config.NAME=VALUE ...]
"""

from vdm_jax.run import cli
from vdm_jax.run import training as run

if __name__ == "__main__":
    cli.main(run.train, cli.CONFIGS / "arrays.py", __doc__)
