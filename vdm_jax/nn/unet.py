"""The paper's U-Net, which never leaves full resolution (VDM appendix B).

Parameter names are those of the published code (its score_model), so that published parameters
are parameters of this module as they are.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn import features
from vdm_jax.nn.features import Head, embed, finish, fourier, posterior_mean, variance_share
from vdm_jax.types import PerExample, Tensor

__all__ = ["UNet"]


class UNet(nn.Module):
    """A stack of residual blocks with skip connections from its first half to its second.

    Attributes:
      gamma_min, gamma_max: gammas that become 0 and 1 of the time embedding.
      channels: of every block; a multiple of 32, the number of groups of the normalisation. Use at
        least 64: with one channel a group, the normalisation takes out what a block adds to a
        channel for gamma and the conditioning, so that the network can't see them.
      num_blocks: blocks in the first half; the second has one more.
      attention: "middle" (one attention block, between the halves) or "all" (after each block too).
      fourier_features: append sin and cos of 2 pi 2^n z to the input, n as `fourier_exponents`
        says: 6 and 7 for 256 levels.
      dropout: rate inside the residual blocks.
      head: "eps", "x", "v" or "score" (a prediction of that kind) or "levels" (a softmax over the
        pixel levels, whose mean is a prediction of kind "x").
      levels: the number of pixel levels.
      learn_variance: return (prediction, share) instead, see `features.variance_share`.
    """

    gamma_min: float
    gamma_max: float
    channels: int = 128
    num_blocks: int = 32
    attention: Literal["middle", "all"] = "middle"
    fourier_features: bool = True
    dropout: float = 0.1
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
        """z_t [batch, height, width, channels], gamma_t [batch] -> prediction of z_t's shape.

        `conditioning` [batch] or [batch, n] is what else to condition on (the published models:
        whether the image was augmented), one zero by default. Dropout needs `deterministic=False`
        and an rng named "dropout".
        """
        self._check(z_t)
        cond = embed(gamma_t, conditioning, self.gamma_min, self.gamma_max, self.channels)
        for name in ("dense0", "dense1"):
            cond = nn.swish(nn.Dense(4 * self.channels, name=name)(cond))

        def block(name: str, h: Tensor) -> Tensor:
            return ResidualBlock(self.channels, self.dropout, name=name)(h, cond, deterministic)

        def maybe_attend(name: str, h: Tensor) -> Tensor:
            return AttentionBlock(name=name)(h) if self.attention == "all" else h

        h = z_t
        if self.fourier_features:
            exponents = features.fourier_exponents(self.levels)
            h = jnp.concatenate([z_t, fourier(z_t, exponents)], axis=-1)
        h = nn.Conv(self.channels, (3, 3), name="conv_in")(h)
        skips = [h]
        for i in range(self.num_blocks):
            h = maybe_attend(f"down.attn_{i}", block(f"down.block_{i}", h))
            skips.append(h)
        h = block("mid.block_1", h)
        h = AttentionBlock(name="mid.attn_1")(h)
        h = block("mid.block_2", h)
        for i in range(self.num_blocks + 1):
            h = block(f"up.block_{i}", jnp.concatenate([h, skips.pop()], axis=-1))
            h = maybe_attend(f"up.attn_{i}", h)
        h = nn.swish(_normalize("GroupNorm_0")(h))
        prediction = self._output(h, z_t, gamma_t)
        return (prediction, variance_share(h, z_t)) if self.learn_variance else prediction

    def _output(self, h: Tensor, z_t: Tensor, gamma_t: PerExample) -> Tensor:
        outputs = z_t.shape[-1] * (self.levels if self.head == "levels" else 1)
        zeros = nn.initializers.zeros
        h = nn.Conv(outputs, (3, 3), kernel_init=zeros, name="conv_out")(h)
        if self.head == "levels":
            return posterior_mean(h.reshape(*z_t.shape, self.levels), z_t, gamma_t)
        return finish(h, z_t, self.head)

    def _check(self, z_t: Tensor) -> None:
        if z_t.ndim != 4:
            raise ValueError(f"UNet wants [batch, height, width, channels], got {z_t.shape}.")
        if self.channels % 32:
            raise ValueError(f"UNet channels must be a multiple of 32, got {self.channels}.")
        if self.attention not in ("middle", "all"):
            raise ValueError(f"UNet attention must be middle or all, got {self.attention!r}.")
        features.check_head("UNet", self.head)


class ResidualBlock(nn.Module):
    """Norm, swish, conv, + conditioning, norm, swish, dropout, conv, + input."""

    features: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tensor, cond: Tensor, deterministic: bool) -> Tensor:
        """[batch, height, width, any], [batch, any] -> [batch, height, width, features]."""
        zeros = nn.initializers.zeros
        h = nn.swish(_normalize("GroupNorm_0")(x))
        h = nn.Conv(self.features, (3, 3), name="conv1")(h)
        project = nn.Dense(self.features, use_bias=False, kernel_init=zeros, name="cond_proj")
        h = h + project(cond)[:, None, None, :]
        h = nn.swish(_normalize("GroupNorm_1")(h))
        h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
        h = nn.Conv(self.features, (3, 3), kernel_init=zeros, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, name="nin_shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Residual self-attention over all pixels, with one head."""

    @nn.compact
    def __call__(self, x: Tensor) -> Tensor:
        """[batch, height, width, channels] -> the same shape."""
        channels = x.shape[-1]
        h = _normalize("GroupNorm_0")(x).reshape(x.shape[0], -1, channels)
        q, k, v = (nn.Dense(channels, name=name)(h) for name in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", q / math.sqrt(channels), k), axis=-1)
        h = jnp.einsum("bqk,bkc->bqc", weights, v)
        h = nn.Dense(channels, kernel_init=nn.initializers.zeros, name="proj_out")(h)
        return x + h.reshape(x.shape)


def _normalize(name: str) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=32, epsilon=1e-6, name=name)
