"""MNIST, as 28x28 grey images of 256 levels.

    python -m experiments.mnist --workdir=DIR

A small U-Net (8 blocks of 64 channels) for 100,000 steps. No figure to expect: the VDM paper has
none for MNIST, and this configuration has not been run to its end yet. Hardware-hours: 1.1 TFLOP a
step by arithmetic, that is 31 hours at 1 TFLOP/s sustained, 20 minutes at 100.
"""

from ml_collections import ConfigDict

from vdm_jax.run import defaults


def get_config() -> ConfigDict:
    """Returns the paper's objective and optimiser, with a smaller network."""
    config = defaults.get_config()
    config.data.name = "mnist"
    config.model.update(channels=64, num_blocks=8)
    config.train.update(steps=100_000)
    config.optimizer.ema_rate = 0.999
    return config
