"""Residual multilayer perceptrons, for vectors and tiny images."""

import math

import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn import features
from vdm_jax.nn.features import Head, embed, posterior_mean
from vdm_jax.types import PerExample, Tensor

__all__ = ["MLP", "SmoothMLP"]


class MLP(nn.Module):
    """Dense layers on the flattened event, with residual blocks modulated by gamma.

    Attributes:
      gamma_min, gamma_max: gammas that become 0 and 1 of the time embedding.
      width: of the hidden layers.
      num_blocks: number of residual blocks.
      dropout: rate inside the blocks.
      fourier_features: append sin and cos of 2 pi 2^n z to the input, see `UNet`.
      head: "eps", "x" or "v" (a prediction of that kind) or "levels" (a softmax over the pixel
        levels, whose mean is a prediction of kind "x").
      levels: the number of pixel levels.
    """

    gamma_min: float
    gamma_max: float
    width: int = 256
    num_blocks: int = 3
    dropout: float = 0.1
    fourier_features: bool = False
    head: Head = "eps"
    levels: int = 256

    @nn.compact
    def __call__(
        self,
        z_t: Tensor,
        gamma_t: PerExample,
        conditioning: Tensor | None = None,
        deterministic: bool = True,
    ) -> Tensor:
        """z_t [batch, *event], gamma_t [batch] -> prediction of z_t's shape; see `UNet`."""
        cond = embed(gamma_t, conditioning, self.gamma_min, self.gamma_max, features=64)
        cond = nn.swish(nn.Dense(self.width, name="embed")(cond))
        h = z_t.reshape(z_t.shape[0], -1)
        if self.fourier_features:
            waves = features.fourier(h, features.fourier_exponents(self.levels))
            h = jnp.concatenate([h, waves], axis=-1)
        h = nn.Dense(self.width, name="input")(h)
        for i in range(self.num_blocks):
            h = h + self._block(i, h, cond, deterministic)
        return self._output(nn.swish(nn.LayerNorm(name="norm_out")(h)), z_t, gamma_t)

    def _block(self, i: int, h: Tensor, cond: Tensor, deterministic: bool) -> Tensor:
        zeros = nn.initializers.zeros
        modulation = nn.Dense(2 * self.width, kernel_init=zeros, name=f"modulate_{i}")(cond)
        scale, shift = jnp.split(modulation, 2, axis=-1)
        h = nn.swish(nn.LayerNorm(name=f"norm_{i}")(h) * (1.0 + scale) + shift)
        h = nn.swish(nn.Dense(self.width, name=f"first_{i}")(h))
        h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
        return nn.Dense(self.width, kernel_init=zeros, name=f"second_{i}")(h)

    def _output(self, h: Tensor, z_t: Tensor, gamma_t: PerExample) -> Tensor:
        features.check_head("MLP", self.head)
        outputs = math.prod(z_t.shape[1:]) * (self.levels if self.head == "levels" else 1)
        h = nn.Dense(outputs, kernel_init=nn.initializers.zeros, name="output")(h)
        if self.head == "levels":
            return posterior_mean(h.reshape(*z_t.shape, self.levels), z_t, gamma_t)
        h = h.reshape(z_t.shape)
        return h if self.head == "v" else h + z_t


class SmoothMLP(nn.Module):
    """A velocity field or denoiser that a differential equation can be solved with: smooth in time.

    `MLP` sees time through sines that turn up to 1000 / 2 pi times over its range, and a solver has
    to follow each turn; here it is `frequencies` half turns at most. Its output starts at zero.

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
