"""A residual multilayer perceptron, for vectors and tiny images."""

import math

import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn import features
from vdm_jax.nn.features import Head, embed, finish, posterior_mean, variance_share
from vdm_jax.types import PerExample, Tensor

__all__ = ["MLP"]


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
