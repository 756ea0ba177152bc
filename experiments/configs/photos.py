"""photos32: 4,096 crops of real photographs, 32x32 in colour, in experiments/photos32.

    python -m experiments.photos --workdir=DIR

A U-Net of three resolutions that begins with Wiener filters (`vdm_jax.nn.pyramid`, 1.7 M
parameters), trained by Muon: some 0.8 processor seconds a step. The test images are of other
photographs than the training images; error bars are over photographs. What was tried, and what it
gave, is in docs/photos.md.

Variants, as `--config=experiments/configs/photos.py:VARIANT`:

* (none): 2,000 steps of 16 images.
* long: 7,500 steps.
"""

from ml_collections import ConfigDict

from vdm_jax.run import defaults

STEPS = {"": 2_000, "long": 7_500}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration for 2 CPU cores."""
    if variant not in STEPS:
        raise ValueError(f"unknown variant {variant!r}; there is long.")
    steps = STEPS[variant]
    config = defaults.get_config()
    config.data.update(name="photos32", augment="flip")
    config.model.update(network="pyramid", channels=48, multipliers="1,2,2", blocks="1,1,1")
    config.model.update(gamma="scalar", remat="none", dropout=0.0, fourier_features=False)
    config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=50, decay="cosine")
    config.optimizer.update(clip_norm=1.0, ema_rate=0.995)
    config.train.update(steps=steps, batch_size=16, log_every=50, checkpoint_every=250)
    config.eval.update(every=steps // 4, batch_size=64, final_repeats=4)
    config.sample.update(every=steps, count=36, num_steps=250)
    return config


def as_photos(config: ConfigDict, **size: int | str) -> None:
    """Gives `config` this network in bfloat16, of another size, and its optimiser: for a GPU."""
    config.model.update(network="pyramid", dtype="bfloat16", fourier_features=False, **size)
    config.model.dropout = 0.0
    config.optimizer.update(name="muon", learning_rate=2e-3, decay="cosine", clip_norm=1.0)
    config.train.steps = 200_000
