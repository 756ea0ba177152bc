"""ImageNet at 32x32.

    python -m experiments.imagenet32 --workdir=DIR --config.data.manual_dir=FOLDER

FOLDER must hold train_32x32.tar and valid_32x32.tar, the downsampled ImageNet of van den Oord et
al. (2016): 1,281,149 images to train on, 49,999 to evaluate on. Their site is closed. Decoded they
take 4.1 GB of disk.

Variants, as `--config=experiments/configs/imagenet32.py:VARIANT`, with the bits per dim to expect
on the validation part. None of them has been reproduced with this code yet.

* (none): 32 blocks of 256 channels, 122 M parameters, 10 M steps of 128 images, as published.
  3.72 (paper, table 1).
* resized: the ImageNet of Chrabaszcz et al. (2017), made small by another filter (0.25 bits per dim
  apart): no figure of the paper compares. It can be downloaded (3.7 GB) without manual_dir.
* labels: the same, with the network conditioned on the 1000 classes. No published figure.

Hardware-hours, by arithmetic and not by measurement: a step costs 80 TFLOP, forward and backward,
so that a million steps take 220 hours at 100 TFLOP/s sustained. The full run is ten million.
"""

from ml_collections import ConfigDict

from vdm_jax.run import defaults

VARIANTS = ("", "resized", "labels")


def get_config(variant: str = "") -> ConfigDict:
    """Returns the published configuration, or a variant of it."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; there are {', '.join(VARIANTS[1:])}.")
    config = defaults.get_config()
    config.data.name = "imagenet_resized/32x32" if variant else "downsampled_imagenet/32x32"
    config.data.class_labels = variant == "labels"
    config.model.update(channels=256, num_blocks=32)
    config.train.log_every = 1_000
    return config
