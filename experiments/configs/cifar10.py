"""CIFAR-10.

    python -m experiments.cifar10 --config=experiments/configs/cifar10.py --workdir=DIR

Variants, as `--config=experiments/configs/cifar10.py:VARIANT`, with the bits per dim to expect on
the test set. None of them has been reproduced with this code yet.

* (none): no augmentation, 30.6 M parameters, 10 M steps of 128 images. 2.65 (paper, table 1);
  2.637 for the released checkpoint (README of the published code).
* aug: flips and rotations, 256 channels, 122 M parameters, monotone schedule, 768 images a step.
  2.522 for the released checkpoint (same README), trained on a TPU v3-64.
* aug_paper: as in the paper, with attention after every block (139 M parameters), 1024 images a
  step, and a schedule that minimises the variance of the loss. 2.49 (paper, table 1).
* fast: a U-Net of three resolutions with Wiener filters (docs/photos.md), 40.2 M parameters,
  bfloat16, 200,000 steps of Muon: for one GPU. 7.7 GFLOP an image forward, 23 with the backward
  pass (plain: 156); a peak of 1.7 GiB compiled for a TPU v5p. No bits per dim is known for it.
* tiny: 2 blocks of 64 channels, 2,000 steps: shows on a laptop that everything works. No published
  figure.

Hardware-hours, by arithmetic and not by measurement: a step costs 20 TFLOP (plain), 470 (aug) or
950 (aug_paper), forward and backward, so that a million steps take 55, 1,300 or 2,600 hours at 100
TFLOP/s sustained. The full plain run is ten million. Measured: 5.3 s a step at batch 4 on 2 CPU
cores for the plain network (docs/benchmarks.md), so use a GPU or TPU.
"""

from ml_collections import ConfigDict

from experiments.configs import photos
from vdm_jax.run import defaults

VARIANTS = ("", "aug", "aug_paper", "fast", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    """Returns the published configuration, or a variant of it."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; there are {', '.join(VARIANTS[1:])}.")
    config = defaults.get_config()
    config.data.name = "cifar10"
    if variant in ("aug", "aug_paper"):
        config.data.augment = "flip_rot90"
        config.model.update(channels=256, dropout=0.05, gamma="monotone")
        config.optimizer.learning_rate = 1e-4
        config.train.update(steps=100_000_000, batch_size=768)
        config.eval.batch_size = 1024
    if variant == "aug_paper":
        config.model.update(attention="all", gamma_objective="variance")
        config.optimizer.learning_rate = 2e-4
        config.train.batch_size = 1024
    if variant == "fast":
        photos.as_photos(config, channels=96, multipliers="1,2,3", blocks="2,3,6")
        config.data.augment = "flip"
    if variant == "tiny":
        config.model.update(channels=64, num_blocks=2)
        config.optimizer.ema_rate = 0.999
        config.train.update(steps=2_000, log_every=50, checkpoint_every=500)
        config.eval.update(every=1_000, final_repeats=1)
        config.sample.update(every=1_000, count=16, num_steps=100)
    return config
