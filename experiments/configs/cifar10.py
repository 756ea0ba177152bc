"""CIFAR-10.

    python -m experiments.cifar10 --config=experiments/configs/cifar10.py --workdir=DIR

Variants, as `--config=experiments/configs/cifar10.py:VARIANT`:

* (none): without augmentation, 31 M parameters. Published: 2.65 (paper, table 1), and 2.637 by the
  released checkpoint (its README), after 10 M steps at batch 128. The paper trained it on 8 TPU
  v3 cores; by its own account 10 M steps take about 9 days there, that is 1,700 core-hours.
* aug: flips and rotations, 256 channels, monotone schedule. Released checkpoint: 2.522 (its README);
  trained on a TPU v3-64.
* aug_paper: as in the paper, with attention after every block and batch 1024. Published: 2.49.
* tiny: 2 blocks of 64 channels for 2,000 steps, to see that everything works: minutes on a CPU.
  No published figure.

None of the published figures has been reproduced with this code yet: they are where those numbers
come from, not a measurement of ours.
"""

from ml_collections import ConfigDict

from experiments.configs import base

VARIANTS = ("", "aug", "aug_paper", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    """The published configuration, or a variant of it."""
    config = base.get_config()
    config.data.name = "cifar10"
    if variant in ("aug", "aug_paper"):
        config.data.augment = "flip_rot90"
        config.model.update(channels=256, dropout=0.05, gamma="monotone")
        config.optimizer.learning_rate = 1e-4
        config.train.update(steps=100_000_000, batch_size=768)
        config.eval.batch_size = 1024
    if variant == "aug_paper":
        config.model.attention = "all"
        config.optimizer.learning_rate = 2e-4
        config.train.batch_size = 1024
    if variant == "tiny":
        config.model.update(channels=64, num_blocks=2)
        config.optimizer.ema_rate = 0.999
        config.train.update(steps=2_000, log_every=50, checkpoint_every=500)
        config.eval.update(every=1_000, final_repeats=1)
        config.sample.update(every=1_000, count=16, num_steps=100)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; there are {', '.join(VARIANTS[1:])}.")
    return config
