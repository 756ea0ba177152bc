"""A small residual network for tiny images: convolutions for what is near, a bottleneck for all."""

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

__all__ = ["ResNet"]


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
