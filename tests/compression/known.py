"""A VDM of which everything is known: independent pixels, whose best denoiser is in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import pixels, schedule
from vdm_jax.compression import Vdm
from vdm_jax.types import PerExample, Tensor

SHAPE = (4, 4, 1)
LEVELS = 16


def probabilities(levels: int = LEVELS) -> np.ndarray:
    """Of each level, the same for all pixels."""
    weights = np.exp(-0.5 * ((np.arange(levels) - levels / 3) / (levels / 8)) ** 2) + 0.02
    return weights / weights.sum()


def images(count: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.choice(LEVELS, (count, *shape), p=probabilities()).astype(np.uint8)


def denoise(logits: Tensor, z_t: Tensor, gamma_t: PerExample) -> Tensor:
    """The posterior mean of x."""
    values = pixels.level_values(len(logits))
    gamma_t = jnp.reshape(gamma_t, (-1, 1, 1, 1, 1))
    error = z_t[..., None] - schedule.alpha(gamma_t) * values
    posterior = jax.nn.softmax(logits - 0.5 * error**2 / schedule.variance(gamma_t))
    return posterior @ values


def vdm(
    gamma_min: float = -8.0, shape: tuple[int, int, int] = SHAPE, levels: int = LEVELS, **given: Any
) -> Vdm:
    settings = {"kind": "x", "settings": {"gamma_min": gamma_min}} | given
    function = settings.pop("denoise", denoise)
    logits = np.log(probabilities(levels))
    gamma = schedule.linear(gamma_min, 5.0)
    return Vdm(function, logits, gamma, shape, levels, **settings)
