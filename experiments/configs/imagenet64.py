"""ImageNet at 64x64.

    python -m experiments.imagenet64 --workdir=DIR --config.data.manual_dir=FOLDER

FOLDER must hold train_64x64.tar and valid_64x64.tar, the downsampled ImageNet of van den Oord et
al. (2016): 1,281,149 images to train on, 49,999 to evaluate on. Their site is closed. Decoded they
take 16.4 GB of disk.

Variants, as `--config=experiments/configs/imagenet64.py:VARIANT`, with the bits per dim to expect
on the validation part. None of them has been reproduced with this code yet.

* (none): 64 blocks of 256 channels, 238 M parameters, 10 M steps of 128 images, as published.
  3.40 (paper, table 1).
* resized, labels: as those of `configs/imagenet32.py`; 14 GB to download.
* fast: a U-Net of four resolutions with Wiener filters (docs/photos.md), 82.1 M parameters,
  bfloat16, 200,000 steps of Muon: for one GPU. An image costs 31 GFLOP forward and some 94 with the
  backward pass, where the published network's takes 4,960. A step of 128, compiled for a TPU v5p,
  has a peak of 4.6 GiB. No bits per dim is known for it.

Hardware-hours, by arithmetic and not by measurement: a step costs 635 TFLOP, forward and backward,
so that a million steps take 1,760 hours at 100 TFLOP/s sustained. The full run is ten million.
"""

from ml_collections import ConfigDict

from experiments.configs import imagenet32, photos


def get_config(variant: str = "") -> ConfigDict:
    """Returns the published configuration, or a variant of it."""
    fast, known = variant == "fast", (*imagenet32.VARIANTS[1:], "fast")
    if variant and variant not in known:
        raise ValueError(f"unknown variant {variant!r}; there are {', '.join(known)}.")
    config = imagenet32.get_config("" if fast else variant)
    config.data.name = config.data.name.replace("32x32", "64x64")
    config.model.num_blocks = 64
    if fast:
        photos.as_photos(config, channels=96, multipliers="1,2,3,4", blocks="2,3,4,6")
    return config
