"""scikit-learn's 8x8 digits (17 grey levels), embedded: no download.

python -m experiments.digits --workdir=DIR
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """The configuration of the main job."""
    config = base.get_config()
    config.data.name = "digits"
    config.model.update(
        network="mlp",
        head="levels",
        channels=256,
        num_blocks=3,
        dropout=0.35,
        gamma="fixed",
        gamma_min=-8.0,
    )
    config.optimizer.update(learning_rate=1e-3, decay="cosine", weight_decay=0.1, ema_rate=0.995)
    config.train.update(
        steps=6_000, batch_size=128, steps_per_call=50, log_every=500, checkpoint_every=2_000
    )
    config.eval.update(every=2_000, batch_size=360, repeats=4, final_repeats=64)
    config.sample.update(every=6_000, num_steps=250)
    return config
