"""MNIST, as 28x28 grey images of 256 levels.

    python -m experiments.mnist --workdir=DIR

A small U-Net (8 blocks of 64 channels) for 100,000 steps. No figure to expect: the VDM paper has
none for MNIST, and this configuration has not been run to its end yet. Hardware-hours: 1.1 TFLOP a
step by arithmetic, that is 31 hours at 1 TFLOP/s sustained, 20 minutes at 100.
"""

from ml_collections import ConfigDict

from experiments.configs import arrays


def get_config() -> ConfigDict:
    """Returns the paper's objective and optimiser, with a smaller network."""
    config = arrays.get_config()
    config.data.name = "mnist"
    return config
