"""A Markovian hierarchical VAE of the 8x8 digits (17 grey levels), embedded: no download.

    python -m experiments.mhvae --workdir=DIR [--config=experiments/configs/mhvae.py:DEPTH]

Four latents, or DEPTH = 2, 4, 8 of them, else as `configs/vae.py`.

Expect 1.95, 2.03 and 2.11 bits per dim for 2, 4 and 8 latents (measured: docs/ladder.md), in 0.03
to 0.05 hours on 2 CPU cores.
"""

from ml_collections import ConfigDict

from experiments.configs import vae

WIDTHS = {"2": 196, "4": 136, "8": 92}  # for equal numbers of parameters


def get_config(depth: str = "4") -> ConfigDict:
    """Returns the configuration of a hierarchy of the given depth."""
    if depth not in WIDTHS:
        raise ValueError(f"depth {depth!r}; known: {', '.join(WIDTHS)}")
    config = vae.get_config()
    config.hierarchy.depth = int(depth)
    config.model.channels = WIDTHS[depth]
    return config
