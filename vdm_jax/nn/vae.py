"""The networks of a hierarchical VAE: learned encoders and decoders, diagonal Gaussians."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.gaussian import Gaussian
from vdm_jax.process import marginal, transition
from vdm_jax.types import Tensor


class HierarchicalVAE(nn.Module):
    """q(z_{i+1}|z_i) and p(z_{i+1}|z_{i+2}) for i = 0, ..., depth - 1, z_0 = x, and p(x|z_1).

    Latents are vectors, [batch, latent_size]. By default every conditional is a multilayer
    perceptron that gives mean and variance.

    Attributes:
      event_shape: shape of x.
      depth: number of latents.
      latent_size: size of each of them; ignored with `data_size`.
      width, num_blocks, dropout: settings of each perceptron.
      data_size: latents have as many elements as x.
      fixed_encoder: encoders are linear and not learned: to the sizes' ratio by a fixed orthonormal
        matrix (no matrix with `data_size`), and then the steps of a variance-preserving diffusion.
      ends_at_normal: the noise follows a schedule that ends at gamma_max, where next to nothing is
        left of x. Learned encoders then give only a mean m(z_i) within [-1, 1], and the latent is
        alpha m + sigma eps of the schedule at its level. Fixed encoders have a schedule in any
        case; without this it ends at gamma = 0, with half of the variance still of x.
      gamma_min, gamma_max: ends of the schedule, of equal steps in gamma; a single latent is last.

    Raises ValueError when called, for a schedule that doesn't rise, or a fixed encoder to latents
    larger than x.
    """

    event_shape: tuple[int, ...]
    depth: int
    latent_size: int = 16
    width: int = 128
    num_blocks: int = 1
    dropout: float = 0.1
    data_size: bool = False
    fixed_encoder: bool = False
    ends_at_normal: bool = False
    gamma_min: float = -8.0
    gamma_max: float = 5.0

    @property
    def size(self) -> int:
        """The number of elements of each latent."""
        return math.prod(self.event_shape) if self.data_size else self.latent_size

    def setup(self) -> None:
        """Makes the perceptrons; none for fixed encoders."""
        end = self.gamma_max if self.ends_at_normal else 0.0
        self._check(end)
        kind = (self.width, self.num_blocks, self.dropout)
        if not self.fixed_encoder:
            self.encoders = [_Conditional(self.size, *kind) for _ in range(self.depth)]
        self.decoders = [_Conditional(self.size, *kind) for _ in range(self.depth - 1)]
        self.likelihood = _Conditional(math.prod(self.event_shape), *kind)
        gammas = jnp.linspace(self.gamma_min, end, self.depth) if self.depth > 1 else [end]
        self.gammas = jnp.array([-jnp.inf, *gammas])  # the data have no noise

    def __call__(self, x: Tensor) -> Tensor:
        """Calls everything once, to make the parameters."""
        z = x
        for i in range(self.depth):
            z = self.encode(i, z, True).mean
        for i in range(self.depth - 2, -1, -1):
            z = self.decode(i, z, True).mean
        return self.pixels(z, True).mean

    def encode(self, i: int, z: Tensor, deterministic: bool) -> Gaussian:
        """Returns q(z_{i+1}|z_i = z), where z_0 is x."""
        flat = z.reshape(z.shape[0], -1)
        if self.fixed_encoder:
            mean = flat @ self._matrix(flat.dtype) if i == 0 and not self.data_size else flat
            return transition(mean, self.gammas[i], self.gammas[i + 1])
        q = self.encoders[i](flat, deterministic)
        return marginal(jnp.tanh(q.mean), self.gammas[i + 1]) if self.ends_at_normal else q

    def decode(self, i: int, z: Tensor, deterministic: bool) -> Gaussian:
        """Returns p(z_{i+1}|z_{i+2} = z)."""
        return self.decoders[i](z, deterministic)

    def pixels(self, z: Tensor, deterministic: bool) -> Gaussian:
        """Returns the Gaussian of p(x|z_1 = z), to be discretised, [batch, *event]."""
        p = self.likelihood(z, deterministic)
        return Gaussian(*(value.reshape(-1, *self.event_shape) for value in p))

    def _check(self, end: float) -> None:
        dims = math.prod(self.event_shape)
        if self.fixed_encoder and self.size > dims:
            sizes = f"latent_size is {self.size}, but x has {dims} elements"
            raise ValueError(f"{sizes}: a fixed encoder has no orthonormal matrix to more.")
        scheduled = self.fixed_encoder or self.ends_at_normal
        if scheduled and not -math.inf < self.gamma_min < end < math.inf:
            raise ValueError(f"no schedule rises from gamma_min ({self.gamma_min}) up to {end}.")

    def _matrix(self, dtype: jnp.dtype) -> Tensor:
        """Returns orthonormal columns [elements of x, latent_size], the same for every model."""
        dims = math.prod(self.event_shape)
        random = jax.random.normal(jax.random.key(0), (dims, self.size), dtype)
        return jnp.linalg.qr(random)[0]


class _Conditional(nn.Module):
    """A vector -> a diagonal Gaussian, by a residual perceptron."""

    size: int
    width: int
    num_blocks: int
    dropout: float

    @nn.compact
    def __call__(self, z: Tensor, deterministic: bool) -> Gaussian:
        h = nn.Dense(self.width, name="input")(z)
        for i in range(self.num_blocks):
            inner = nn.Dense(self.width, name=f"first_{i}")(nn.swish(nn.LayerNorm()(h)))
            inner = nn.Dropout(self.dropout)(nn.swish(inner), deterministic=deterministic)
            zeros = nn.initializers.zeros
            h = h + nn.Dense(self.width, kernel_init=zeros, name=f"second_{i}")(inner)
        outputs = nn.Dense(2 * self.size, kernel_init=nn.initializers.normal(0.01), name="output")
        mean, log_var = jnp.split(outputs(nn.swish(nn.LayerNorm()(h))), 2, axis=-1)
        # Within e^±8: no step of the optimiser, however large, makes a variance 0 or infinite.
        return Gaussian(mean, jnp.exp(8.0 * jnp.tanh(log_var / 8.0)))
