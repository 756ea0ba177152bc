"""A VDM of which everything is known: independent pixels, whose best denoiser is in closed form."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import VDM, compression, pixels, schedule
from vdm_jax.types import PerExample, Tensor

SHAPE = (4, 4, 1)
LEVELS = 16


def probabilities(levels: int = LEVELS) -> np.ndarray:
    """Returns the probability of each level, the same for all pixels."""
    weights = np.exp(-0.5 * ((np.arange(levels) - levels / 3) / (levels / 8)) ** 2) + 0.02
    return weights / weights.sum()


def images(count: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.choice(LEVELS, (count, *shape), p=probabilities()).astype(np.uint8)


def denoise(logits: Tensor, z_t: Tensor, gamma_t: PerExample) -> Tensor:
    """Returns the posterior mean of x."""
    values = pixels.level_values(len(logits))
    gamma_t = jnp.reshape(gamma_t, (-1, 1, 1, 1, 1))
    error = z_t[..., None] - schedule.alpha(gamma_t) * values
    posterior = jax.nn.softmax(logits - 0.5 * error**2 / schedule.variance(gamma_t))
    return posterior @ values


def learned(logits: Tensor, z_t: Tensor, gamma_t: PerExample) -> tuple[Tensor, Tensor]:
    """Returns the posterior mean of x, and some share of the reverse variance."""
    return denoise(logits, z_t, gamma_t), jax.nn.sigmoid(3 * z_t)


class Known(NamedTuple):
    """The three things that the codec takes of a model."""

    bind: Any
    params: Any
    settings: dict[str, Any]

    @property
    def vdm(self) -> VDM:
        return self.bind(self.params)

    def compress(
        self,
        images: np.ndarray,
        num_steps: int = 100,
        grid: int = 2,
        blocks: Any = None,
        placed: bool = False,
        **given: Any,
    ) -> tuple[bytes, compression.Summary]:
        options = compression.Options(num_steps, grid, blocks, placed=placed)
        return compression.compress(images, *self, options=options, **given)

    def decompress(self, content: bytes) -> tuple[np.ndarray, bytes]:
        return compression.decompress(content, *self)


def model(
    gamma_min: float = -8.0,
    shape: tuple[int, ...] = SHAPE,
    levels: int = LEVELS,
    network: Any = denoise,
    **fields: Any,
) -> Known:
    """Returns the model; `network` is in place of its best denoiser, `fields` of other fields."""

    def bind(logits: Tensor) -> VDM:
        vdm = VDM(partial(network, logits), schedule.linear(gamma_min, 5.0), shape, levels, "x")
        return vdm._replace(**fields)

    return Known(bind, np.log(probabilities(levels)), {"gamma_min": gamma_min})
