"""Small networks: perceptrons for vectors and tiny images, a residual network for tiny images."""

import math

import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import pixels
from vdm_jax.nn.features import Denoiser, level_log_posterior
from vdm_jax.types import PerExample, Tensor


class MLP(Denoiser):
    """Dense layers on the flattened event, with residual blocks modulated by gamma.

    Attributes: those of `Denoiser`, the width of the hidden layers and the number of blocks.
    """

    width: int = 256
    num_blocks: int = 3

    @nn.compact
    def __call__(
        self,
        z_t: Tensor,
        gamma_t: PerExample,
        conditioning: Tensor | None = None,
        deterministic: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the prediction for z_t [batch, *event], gamma_t [batch]; see `Denoiser`."""
        cond = self.embed(gamma_t, conditioning, features=64)
        cond = nn.swish(nn.Dense(self.width, name="embed")(cond))
        flat = z_t.reshape(z_t.shape[0], -1)
        h = nn.Dense(self.width, name="input")(self.waves(flat, flat))
        zeros = nn.initializers.zeros
        for i in range(self.num_blocks):
            modulation = nn.Dense(2 * self.width, kernel_init=zeros, name=f"modulate_{i}")(cond)
            scale, shift = jnp.split(modulation, 2, axis=-1)
            inner = nn.swish(nn.LayerNorm(name=f"norm_{i}")(h) * (1.0 + scale) + shift)
            inner = nn.swish(nn.Dense(self.width, name=f"first_{i}")(inner))
            inner = nn.Dropout(self.dropout)(inner, deterministic=deterministic)
            h = h + nn.Dense(self.width, kernel_init=zeros, name=f"second_{i}")(inner)
        h = nn.swish(nn.LayerNorm(name="norm_out")(h))
        outputs = self.outputs(math.prod(z_t.shape[1:]))
        last = nn.Dense(outputs, kernel_init=zeros, name="output")(h)
        return self.predict(last, h, z_t, gamma_t)


class SmoothMLP(nn.Module):
    """A velocity field or denoiser that a differential equation can be solved with: smooth in time.

    `MLP` sees time through sines that turn up to 1000 / 2 pi times over its range, and a solver has
    to follow each turn; this one sees t, sin(k pi t) and cos(k pi t) for k = 1, ..., `frequencies`.
    Its output starts at zero.
    """

    width: int = 64
    num_blocks: int = 2
    frequencies: int = 2

    @nn.compact
    def __call__(self, z: Tensor, t: PerExample) -> Tensor:
        """Returns an array of z's shape for z [batch, *event] and t [batch], in about [0, 1]."""
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


class ResNet(Denoiser):
    """Residual blocks at full resolution, modulated by gamma, for images of one fixed small size.

    Each block mixes neighbours by 3x3 convolutions and, in place of the U-Net's attention, the
    whole image by a dense bottleneck, which is why the image size is part of the parameters; in it
    the dropout's rate is twice as high.

    Attributes: those of `Denoiser`, the blocks' channels (a multiple of 4) and their number.
    """

    channels: int = 32
    num_blocks: int = 4

    @nn.compact
    def __call__(
        self,
        z_t: Tensor,
        gamma_t: PerExample,
        conditioning: Tensor | None = None,
        deterministic: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the prediction for z_t [batch, height, width, channels]; see `Denoiser`."""
        if self.channels < 4 or self.channels % 4:
            raise ValueError(f"ResNet channels must be a multiple of 4, got {self.channels}.")
        cond = self.embed(gamma_t, conditioning, features=64)
        cond = nn.swish(nn.Dense(2 * self.channels, name="embed")(cond))

        h = z_t
        if self.head == "levels":
            # What each pixel by itself tells: the posterior over its levels, under a learned prior.
            prior = self.param("bias", nn.initializers.zeros, (*z_t.shape[1:], self.levels))
            h = self._moments(prior, z_t, gamma_t)
        h = nn.Conv(self.channels, (3, 3), name="conv_in")(self.waves(h, z_t))
        h = h + self.param("position", nn.initializers.normal(0.02), h.shape[1:])
        for i in range(self.num_blocks):
            block = _Block(self.channels, self.dropout, name=f"block_{i}")
            h = h + block(h, cond, deterministic)
        h = nn.Dropout(self.dropout)(nn.LayerNorm(name="norm_out")(h), deterministic=deterministic)
        outputs, zeros = self.outputs(z_t.shape[-1]), nn.initializers.zeros
        last = nn.Dense(outputs, kernel_init=zeros, name="output")(h)
        if self.head == "levels":
            last = last.reshape(*z_t.shape, self.levels) + prior
        return self.predict(last, h, z_t, gamma_t)

    def _moments(self, prior: Tensor, z_t: Tensor, gamma_t: PerExample) -> Tensor:
        """Returns mean and standard deviation of each pixel's own posterior, [..., 2 channels]."""
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
