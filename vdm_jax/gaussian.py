"""Diagonal Gaussians, all a variational diffusion model is made of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.types import Key, Tensor

__all__ = ["Gaussian", "excess"]


class Gaussian(NamedTuple):
    """N(mean, var I): independent normal variables, one per element.

    `mean` and `var` broadcast against each other; `var` is the variance sigma^2 and positive
    (`sample` and `at` also admit zero: a point mass).
    """

    mean: Tensor
    var: Tensor

    def at(self, eps: Tensor) -> Tensor:
        """The reparameterisation mean + sqrt(var) eps of standard-normal noise `eps`."""
        return self.mean + jnp.sqrt(self.var) * eps

    def sample(self, key: Key) -> Tensor:
        """One draw, of the shape to which mean and var broadcast."""
        shape = jnp.broadcast_shapes(jnp.shape(self.mean), jnp.shape(self.var))
        return self.at(jax.random.normal(key, shape, jnp.result_type(self.mean, self.var, float)))

    def log_prob(self, x: Tensor) -> Tensor:
        """Elementwise log-density at `x`, in nats."""
        square = jnp.square(x - self.mean) / self.var
        return -0.5 * (square + jnp.log(self.var) + jnp.log(2 * jnp.pi))

    def kl(self, p: "Gaussian") -> Tensor:
        """Elementwise KL(self || p), in nats.

        KL = ((var_q/var_p - 1 - log(var_q/var_p)) + (mean_q - mean_p)^2/var_p) / 2. The first
        bracket is a difference of nearly equal numbers when the variances are nearly equal, so
        `excess` computes it from the relative difference.
        """
        relative = (self.var - p.var) / p.var
        return 0.5 * (excess(relative, self.var / p.var) + jnp.square(self.mean - p.mean) / p.var)


def excess(r: Tensor, ratio: Tensor) -> Tensor:
    """r - log(1 + r) >= 0 without cancellation; `ratio` is 1 + r, exact where r is near -1.

    Near zero, with s = r / (2 + r), log(1 + r) = 2 atanh(s) and
    r - log(1 + r) = r s - 2 s^3 (1/3 + s^2/5 + s^4/7 + ...). At |r| = 1/4 twelve terms leave a
    relative error below 1e-18; beyond, the plain form loses no more than three bits.
    """
    near = jnp.abs(r) < 0.25
    small = jnp.where(near, r, 0.0)
    s = small / (2.0 + small)
    s2 = jnp.square(s)
    tail = jnp.zeros_like(s)
    for k in range(12, 0, -1):
        tail = tail * s2 + 1.0 / (2 * k + 1)
    series = small * s - 2.0 * s * s2 * tail
    plain = r - jnp.log(jnp.where(near, 1.0, ratio))
    return jnp.where(near, series, plain)
