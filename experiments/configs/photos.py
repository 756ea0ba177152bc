"""photos32: 4,096 crops of real photographs, 32x32 in colour, in experiments/photos32.

    python -m experiments.photos --workdir=DIR

A U-Net of three resolutions (`vdm_jax.nn.pyramid`), which needs less than a hundredth of the
operations of the paper's network for an image. The test images are of other photographs than the
training images; error bars are over photographs.
"""

from ml_collections import ConfigDict

from vdm_jax.run import defaults


def get_config() -> ConfigDict:
    """Returns the configuration for 2 CPU cores."""
    config = defaults.get_config()
    config.data.update(name="photos32", augment="flip")
    config.model.update(network="pyramid", channels=32, gamma="fixed", dropout=0.0)
    config.optimizer.update(learning_rate=2e-3, decay="cosine", clip_norm=1.0, ema_rate=0.999)
    config.train.update(steps=2_500, batch_size=16, log_every=50, checkpoint_every=250)
    config.eval.update(every=1_250, batch_size=64, final_repeats=4)
    config.sample.update(every=2_500, count=36, num_steps=100)
    return config
