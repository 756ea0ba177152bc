"""Independent normal and binary variables, of which diffusion models are made."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from vdm_jax.types import Key, Tensor


class Gaussian(NamedTuple):
    """N(mean, var I): independent normal variables, one per element.

    `mean` and `var` broadcast against each other; `var` is the variance sigma^2 and positive
    (`sample` and `at` also admit zero: a point mass).
    """

    mean: Tensor
    var: Tensor

    def at(self, eps: Tensor) -> Tensor:
        """Returns the reparameterisation mean + sqrt(var) eps of standard-normal noise `eps`."""
        return self.mean + jnp.sqrt(self.var) * eps

    def sample(self, key: Key) -> Tensor:
        """Returns one draw, of the shape to which mean and var broadcast."""
        shape = jnp.broadcast_shapes(jnp.shape(self.mean), jnp.shape(self.var))
        return self.at(jax.random.normal(key, shape, jnp.result_type(self.mean, self.var, float)))

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns the elementwise log-density at `x`, in nats."""
        square = jnp.square(x - self.mean) / self.var
        return -0.5 * (square + jnp.log(self.var) + jnp.log(2 * jnp.pi))

    def kl(self, p: "Gaussian") -> Tensor:
        """Returns the elementwise KL(self || p), in nats.

        KL = ((var_q/var_p - 1 - log(var_q/var_p)) + (mean_q - mean_p)^2/var_p) / 2, of which
        `excess` keeps the digits where the variances are nearly equal.
        """
        relative = (self.var - p.var) / p.var
        return 0.5 * (excess(relative, self.var / p.var) + jnp.square(self.mean - p.mean) / p.var)


def excess(r: Tensor, ratio: Tensor) -> Tensor:
    """Returns r - log(1 + r) >= 0 without cancellation; `ratio` is 1 + r, exact where r is near -1.

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


class Bernoulli(NamedTuple):
    """Independent variables in {0, 1}, one per element, P(1) = sigmoid(logits).

    Logits and not probabilities: a float has no room for a probability near 1. A certain value is
    a logit of +inf (it is 1) or -inf (it is 0); values and gradients are free of NaN there.
    """

    logits: Tensor

    def at(self, u: Tensor) -> Int[Array, "..."]:
        """Returns the draw u < P(1), integers, made of uniform noise `u` in [0, 1); 0 for NaN."""
        return (u < jax.nn.sigmoid(self.logits)).astype(int)

    def sample(self, key: Key) -> Int[Array, "..."]:
        """Returns one draw, integers in {0, 1} of the shape of the logits."""
        dtype = jnp.result_type(self.logits, float)
        return self.at(jax.random.uniform(key, jnp.shape(self.logits), dtype))

    def log_prob(self, x: ArrayLike) -> Tensor:
        """Returns elementwise log P(x), in nats, of x in {0, 1}; other values give NaN."""
        x = jnp.asarray(x)
        log_p1, log_p0 = jax.nn.log_sigmoid(self.logits), jax.nn.log_sigmoid(-self.logits)
        return jnp.where(x == 1, log_p1, jnp.where(x == 0, log_p0, jnp.nan))

    def kl(self, p: "Bernoulli") -> Tensor:
        """Returns the elementwise KL(self || p), in nats; inf where p excludes what self allows.

        With q = sigmoid(a) the smaller probability of self, a <= 0, b the logit of p for the same
        value and d = b - a, KL = log(1 + q (exp(d) - 1)) - q d. For nearly equal logits this is a
        difference of nearly equal numbers. With r = exp(d) - 1 and E(r) = r - log(1 + r) it is
        q E(r) - E(q r), of which the second is at most half of the first.
        """
        side = jnp.where(self.logits > 0, -1.0, 1.0)
        a, b = side * self.logits, side * p.logits
        certain = jax.nn.sigmoid(a) == 0.0
        a = jnp.where(certain, 0.0, a)
        q = jax.nn.sigmoid(a)
        near = jnp.abs(b - a) < 1.0
        d = jnp.where(near, b - a, 0.0)
        y = q * jnp.expm1(d)
        close = q * excess(jnp.expm1(d), jnp.exp(d)) - excess(y, 1.0 + y)
        # Cross-entropy less entropy, of terms that are finite for finite b and never inf - inf.
        linear = jnp.where(b > 0, jax.nn.sigmoid(-a) * b + q * a, q * (a - b))
        apart = linear + jnp.log1p(jnp.exp(-jnp.abs(b))) - jax.nn.softplus(a)
        return jnp.where(certain, jax.nn.softplus(b), jnp.where(near, close, apart))
