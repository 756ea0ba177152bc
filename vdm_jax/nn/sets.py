"""A network for sets of points: a transformer that is equivariant to their order."""

import math
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import checks
from vdm_jax.nn.features import finish
from vdm_jax.process import expand
from vdm_jax.schedule import alpha
from vdm_jax.types import Kind, PerExample, Tensor

_WAVES = 8  # sines and cosines of gamma, of few turns, so that an ODE can be solved with it
_HARMONICS = 3  # of a periodic position


class SetTransformer(nn.Module):
    """A denoiser of sets of n points in d dimensions: their order moves its prediction along.

    Each point attends to the points that are there; gamma, the condition and the number of points
    scale and shift the normalised features of each block. The last layer is zero to begin with
    (`features.finish`).

    Attributes:
      gamma_min, gamma_max: gammas that become 0 and 1 for the network.
      width: number of features of a point, a multiple of num_heads.
      num_blocks: number of blocks, each an attention and two dense layers.
      num_heads: number of heads of the attention.
      dropout: rate inside the blocks; needs `deterministic=False` and an rng named "dropout".
      head: kind of the prediction.
      periodic: period of the points x on a torus, hence alpha_t times this of z_t, which is seen
        through sines and cosines alone. The prediction, which must be of v, is periodic, the
        model's density is not: it is one on R^d, of which the torus has the sum over all shifts by
        periods. Give positions in [-period / 2, period / 2), and a period of about 3.5, for which
        uniform coordinates have the variance 1.
      centred: takes the centre of mass of the points that are there out of z_t and out of the
        prediction, which is then invariant to translations. By the ODE each coordinate of the
        points' sum over sqrt(n) has the density N(0, 1 + exp(gamma)), with gamma = gamma_1 for
        "eps" and gamma_0 for "v"; the bound is sigmoid(gamma) / 2 nats below its logarithm.
    """

    gamma_min: float
    gamma_max: float
    width: int = 64
    num_blocks: int = 3
    num_heads: int = 4
    dropout: float = 0.0
    head: Kind = "eps"
    periodic: float | None = None
    centred: bool = False

    @nn.compact
    def __call__(
        self,
        z_t: Tensor,
        gamma_t: PerExample,
        conditioning: Any = None,
        mask: Tensor | None = None,
        deterministic: bool = True,
    ) -> Tensor:
        """Returns the prediction [batch, n, d], 0 where the mask is.

        z_t is [batch, n, d], gamma_t [batch]; `conditioning` is any pytree of arrays [batch, ...];
        `mask` is [batch, n], or broadcasts to [batch, n, 1], 1 where there is a point: what z_t
        holds elsewhere changes nothing. Raises ValueError for a mask of single coordinates, and
        for a periodic head other than "v", or a centred one.
        """
        if self.periodic is not None and (self.head != "v" or self.centred):
            got = f"head={self.head!r} and centred={self.centred}"
            raise ValueError(f"a periodic set needs head='v' and no centre of mass, got {got}.")
        checks.choice(self.head, "SetTransformer head", get_args(Kind))
        for leaf in jax.tree.leaves(conditioning):
            if len(leaf) != len(z_t):
                raise ValueError(f"conditioning has {len(leaf)} rows for {len(z_t)} sets.")
        batch, n, d = z_t.shape
        there = jnp.ones((1, n, 1), bool) if mask is None else jnp.asarray(mask) != 0
        there = there[..., None] if there.ndim == 2 else there
        if there.ndim != 3 or there.shape[2] != 1:
            wanted = "one number for each point, [batch, n, 1] or [batch, n]"
            raise ValueError(f"mask has shape {there.shape}; wanted {wanted}.")
        there = jnp.broadcast_to(there, (batch, n, 1))
        z = self._centre(jnp.where(there, z_t, 0.0), there)
        context = self._context(gamma_t, conditioning, there)
        cond = nn.swish(nn.Dense(self.width, name="embed")(context))
        h = nn.Dense(self.width, name="input")(self._positions(z, gamma_t))
        for i in range(self.num_blocks):
            block = _Block(self.width, self.num_heads, self.dropout, name=f"block_{i}")
            h = block(h, cond, there, deterministic)
        h = nn.LayerNorm(name="norm_out")(h)
        last = nn.Dense(d, kernel_init=nn.initializers.zeros, name="output")(h)
        prediction = self._centre(finish(last, z, self.head), there)
        return jnp.where(there, prediction, 0.0)

    def _centre(self, z: Tensor, there: Tensor) -> Tensor:
        """Returns z [batch, n, d] without the mean over the points that are there, if asked for."""
        if not self.centred:
            return z
        number = jnp.maximum(jnp.sum(there, axis=1, keepdims=True), 1)
        return jnp.where(there, z - jnp.sum(z, axis=1, keepdims=True, where=there) / number, 0.0)

    def _context(self, gamma_t: PerExample, conditioning: Any, there: Tensor) -> Tensor:
        """Returns what all points of a set have in common, [batch, features]."""
        t = ((gamma_t - self.gamma_min) / (self.gamma_max - self.gamma_min))[:, None]
        angles = math.pi * t * jnp.arange(1, _WAVES + 1, dtype=t.dtype)
        # The attention takes means, which don't tell how many points there are.
        number = jnp.log1p(jnp.sum(there, axis=1).astype(t.dtype))
        given = [jnp.reshape(leaf, (len(t), -1)) for leaf in jax.tree.leaves(conditioning)]
        return jnp.concatenate([t, jnp.sin(angles), jnp.cos(angles), number, *given], axis=1)

    def _positions(self, z: Tensor, gamma_t: PerExample) -> Tensor:
        """Returns the positions as the network sees them, [batch, n, features]."""
        if self.periodic is None:
            return z
        turns = z / (expand(alpha(gamma_t), z) * self.periodic)
        angles = 2.0 * math.pi * turns[..., None] * jnp.arange(1, _HARMONICS + 1, dtype=z.dtype)
        angles = angles.reshape(*z.shape[:-1], -1)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class _Block(nn.Module):
    width: int
    num_heads: int
    dropout: float

    @nn.compact
    def __call__(self, h: Tensor, cond: Tensor, there: Tensor, deterministic: bool) -> Tensor:
        zeros = nn.initializers.zeros
        modulation = nn.Dense(4 * self.width, kernel_init=zeros, name="modulate")(cond)
        scales_shifts = jnp.split(modulation[:, None, :], 4, axis=-1)

        def modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            return nn.LayerNorm(use_scale=False, use_bias=False)(h) * (1.0 + scale) + shift

        inner = modulated(h, *scales_shifts[:2])
        attention = nn.MultiHeadDotProductAttention(self.num_heads, name="attention")
        h = h + attention(inner, mask=there[:, None, None, :, 0])
        inner = modulated(h, *scales_shifts[2:])
        inner = nn.swish(nn.Dense(2 * self.width, name="first")(inner))
        inner = nn.Dropout(self.dropout)(inner, deterministic=deterministic)
        return h + nn.Dense(self.width, kernel_init=zeros, name="second")(inner)
