"""Your own images, from an .npz file with arrays `train` and `test`.

    python -m experiments.arrays --workdir=DIR --config.data.path=FILE.npz

Both arrays are integers [n, height, width] or [n, height, width, channels], any size and channel
count, with values in [0, config.data.levels), by default 256. With `train_label` and `test_label`,
integers [n] from 0 on, --config.data.class_labels=True conditions the network on them; with
`train_condition` and `test_condition`, finite numbers [n, ...], it is conditioned on those.

The network is the paper's U-Net with fewer blocks; start from `configs/cifar10.py` for its full
size. Bits per dim and hardware-hours depend on the images: the run prints its rate and the time
left.
"""

from ml_collections import ConfigDict

from vdm_jax.run import defaults


def get_config() -> ConfigDict:
    """Returns the paper's objective and optimiser, with a smaller network."""
    config = defaults.get_config()
    config.data.name = "arrays"
    config.model.update(channels=64, num_blocks=8)
    config.train.update(steps=100_000)
    config.optimizer.ema_rate = 0.999
    return config
