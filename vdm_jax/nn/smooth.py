"""A perceptron for differential equations: smooth in time as well as in its input."""

import math

import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.types import PerExample, Tensor

__all__ = ["SmoothMLP"]


class SmoothMLP(nn.Module):
    """A velocity field or denoiser that a differential equation can be solved with: smooth in time.

    `vdm_jax.nn.mlp.MLP` sees time through sines that turn up to 1000 / 2 pi times over its range,
    and a solver has to follow each turn; here it is `frequencies` half turns at most. Its output
    starts at zero.

    Attributes:
      width: of the hidden layers.
      num_blocks: number of residual blocks.
      frequencies: the time t is seen as t, sin(k pi t) and cos(k pi t) for k = 1, ..., frequencies.
    """

    width: int = 64
    num_blocks: int = 2
    frequencies: int = 2

    @nn.compact
    def __call__(self, z: Tensor, t: PerExample) -> Tensor:
        """z [batch, *event], t [batch], in about [0, 1] -> an array of z's shape."""
        angles = math.pi * t[:, None] * jnp.arange(1, self.frequencies + 1, dtype=t.dtype)
        time = jnp.concatenate([t[:, None], jnp.sin(angles), jnp.cos(angles)], axis=1)
        time = nn.swish(nn.Dense(self.width, name="embed")(time))
        zeros = nn.initializers.zeros
        h = nn.Dense(self.width, name="input")(z.reshape(z.shape[0], -1))
        for i in range(self.num_blocks):
            modulation = nn.Dense(2 * self.width, name=f"modulate_{i}")(time)
            scale, shift = jnp.split(modulation, 2, axis=-1)
            inner = nn.swish(h * (1.0 + scale) + shift)
            inner = nn.swish(nn.Dense(self.width, name=f"first_{i}")(inner))
            h = h + nn.Dense(self.width, kernel_init=zeros, name=f"second_{i}")(inner)
        outputs = math.prod(z.shape[1:])
        return nn.Dense(outputs, kernel_init=zeros, name="output")(nn.swish(h)).reshape(z.shape)
