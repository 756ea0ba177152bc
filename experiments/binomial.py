"""Train binomial diffusion on black-and-white digits and evaluate on its test set.

python -m experiments.binomial --workdir=DIR [--config=FILE.py[:VARIANT]] [--config.NAME=VALUE ...]
"""

from vdm_jax.run import cli
from vdm_jax.run import training as run

if __name__ == "__main__":
    cli.main(run.train, cli.CONFIGS / "binomial.py", __doc__)
