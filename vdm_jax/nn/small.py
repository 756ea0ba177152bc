"""Small networks: perceptrons for vectors and tiny images, a residual network for tiny images."""

import math

import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import pixels
from vdm_jax.nn import features
from vdm_jax.nn.features import (
    Head,
    embed,
    finish,
    level_log_posterior,
    posterior_mean,
    variance_share,
)
from vdm_jax.types import PerExample, Tensor

__all__ = ["MLP", "ResNet", "SmoothMLP"]


class MLP(nn.Module):
    """Dense layers on the flattened event, with residual blocks modulated by gamma.

    Attributes:
      gamma_min, gamma_max: gammas that become 0 and 1 of the time embedding.
      width: of the hidden layers.
      num_blocks: number of residual blocks.
      dropout: rate inside the blocks.
      fourier_features: append sin and cos of 2 pi 2^n z to the input, see `UNet`.
      head: "eps", "x", "v" or "score" (a prediction of that kind) or "levels" (a softmax over the
        pixel levels, whose mean is a prediction of kind "x").
      levels: the number of pixel levels.
      learn_variance: return (prediction, share) instead, see `features.variance_share`.
    """

    gamma_min: float
    gamma_max: float
    width: int = 256
    num_blocks: int = 3
    dropout: float = 0.1
    fourier_features: bool = False
    head: Head = "eps"
    levels: int = 256
    learn_variance: bool = False

    @nn.compact
    def __call__(
        self,
        z_t: Tensor,
        gamma_t: PerExample,
        conditioning: Tensor | None = None,
        deterministic: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
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
        h = nn.swish(nn.LayerNorm(name="norm_out")(h))
        prediction = self._output(h, z_t, gamma_t)
        return (prediction, variance_share(h, z_t)) if self.learn_variance else prediction

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
        return finish(h.reshape(z_t.shape), z_t, self.head)


class SmoothMLP(nn.Module):
    """A velocity field or denoiser that a differential equation can be solved with: smooth in time.

    `MLP` sees time through sines that turn up to 1000 / 2 pi times over its range,
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


class ResNet(nn.Module):
    """Residual blocks at full resolution, modulated by gamma, for images of one fixed small size.

    Each block mixes neighbours by 3x3 convolutions and, in place of the U-Net's attention, the
    whole image by a dense bottleneck, which is why the image size is part of the parameters.

    Attributes:
      gamma_min, gamma_max: gammas that become 0 and 1 of the time embedding.
      channels: of every block; a multiple of 4.
      num_blocks: number of residual blocks.
      dropout: rate inside the convolutions; twice that in the bottleneck.
      fourier_features: append sin and cos of 2 pi 2^n z to the input, see `UNet`.
      head: "eps", "x", "v" or "score" (a prediction of that kind) or "levels" (a softmax over the
        pixel levels, whose mean is a prediction of kind "x").
      levels: the number of pixel levels.
      learn_variance: return (prediction, share) instead, see `features.variance_share`.
    """

    gamma_min: float
    gamma_max: float
    channels: int = 32
    num_blocks: int = 4
    dropout: float = 0.1
    fourier_features: bool = False
    head: Head = "eps"
    levels: int = 256
    learn_variance: bool = False

    @nn.compact
    def __call__(
        self,
        z_t: Tensor,
        gamma_t: PerExample,
        conditioning: Tensor | None = None,
        deterministic: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """z_t [batch, height, width, channels], gamma_t [batch]; see `UNet`."""
        features.check_head("ResNet", self.head)
        if self.channels < 4 or self.channels % 4:
            raise ValueError(f"ResNet channels must be a multiple of 4, got {self.channels}.")
        cond = embed(gamma_t, conditioning, self.gamma_min, self.gamma_max, features=64)
        cond = nn.swish(nn.Dense(2 * self.channels, name="embed")(cond))

        prior = jnp.zeros(())
        h = z_t
        if self.head == "levels":
            # What each pixel by itself tells: the posterior over its levels, under a learned prior.
            prior = self.param("bias", nn.initializers.zeros, (*z_t.shape[1:], self.levels))
            h = self._moments(prior, z_t, gamma_t)
        if self.fourier_features:
            waves = features.fourier(z_t, features.fourier_exponents(self.levels))
            h = jnp.concatenate([h, waves], axis=-1)
        h = nn.Conv(self.channels, (3, 3), name="conv_in")(h)
        h = h + self.param("position", nn.initializers.normal(0.02), h.shape[1:])
        for i in range(self.num_blocks):
            block = _Block(self.channels, self.dropout, name=f"block_{i}")
            h = h + block(h, cond, deterministic)
        h = nn.Dropout(self.dropout)(nn.LayerNorm(name="norm_out")(h), deterministic=deterministic)
        prediction = self._output(h, prior, z_t, gamma_t)
        return (prediction, variance_share(h, z_t)) if self.learn_variance else prediction

    def _output(self, h: Tensor, prior: Tensor, z_t: Tensor, gamma_t: PerExample) -> Tensor:
        outputs = z_t.shape[-1] * (self.levels if self.head == "levels" else 1)
        h = nn.Dense(outputs, kernel_init=nn.initializers.zeros, name="output")(h)
        if self.head == "levels":
            return posterior_mean(h.reshape(*z_t.shape, self.levels) + prior, z_t, gamma_t)
        return finish(h, z_t, self.head)

    def _moments(self, prior: Tensor, z_t: Tensor, gamma_t: PerExample) -> Tensor:
        """Mean and standard deviation of each pixel's own posterior: [..., 2 channels]."""
        logits = jnp.broadcast_to(prior, (*z_t.shape, self.levels))
        probabilities = jnp.exp(level_log_posterior(logits, z_t, gamma_t))
        values = pixels.level_values(self.levels)
        mean = probabilities @ values
        var = jnp.sum(probabilities * jnp.square(values - mean[..., None]), axis=-1)
        return jnp.concatenate([mean, jnp.sqrt(var + 1e-6)], axis=-1)


class _Block(nn.Module):
    channels: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tensor, cond: Tensor, deterministic: bool) -> Tensor:
        zeros = nn.initializers.zeros
        modulation = nn.Dense(2 * self.channels, kernel_init=zeros, name="modulate")(cond)
        scale, shift = jnp.split(modulation[:, None, None, :], 2, axis=-1)
        x = nn.LayerNorm(use_scale=False, use_bias=False)(x) * (1.0 + scale) + shift
        whole = nn.Dense(self.channels // 4, name="squeeze")(x).reshape(x.shape[0], -1)
        whole = nn.swish(nn.Dense(4 * self.channels, name="mix")(whole))
        whole = nn.Dropout(2 * self.dropout)(whole, deterministic=deterministic)
        whole = nn.Dense(self.channels, name="spread")(whole)[:, None, None, :]
        h = nn.swish(nn.Conv(self.channels, (3, 3), name="conv1")(x) + whole)
        h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
        return nn.Conv(self.channels, (3, 3), kernel_init=zeros, name="conv2")(h)
