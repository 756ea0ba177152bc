"""Binomial diffusion (Sohl-Dickstein et al. 2015) of the 8x8 digits in black and white, embedded.

    python -m experiments.binomial --workdir=DIR

The network of `configs/digits.py` gives the odds of each bit; T is 1000.

Expect 0.41 bits per dim on the test set after 1,500 of the 5,000 steps (measured: docs/ladder.md),
in 0.01 hours on 2 CPU cores.
"""

from ml_collections import ConfigDict

from experiments.configs import digits


def get_config() -> ConfigDict:
    """Returns the configuration of the bits' rung of the ladder."""
    config = digits.get_config()
    config.data.name = "digits_binary"
    config.model.update(process="binomial", head="logits", num_steps=1000)
    return config
