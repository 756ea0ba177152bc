"""Independent coin flips, what binomial diffusion is made of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from vdm_jax.gaussian import excess
from vdm_jax.types import Key, Tensor

__all__ = ["Bernoulli"]


class Bernoulli(NamedTuple):
    """Independent variables in {0, 1}, one per element, P(1) = sigmoid(logits).

    Logits and not probabilities: a float has no room for a probability near 1, but
    log P(1) = log_sigmoid(logits) and log P(0) = log_sigmoid(-logits) keep all their digits. A
    certain value is a logit of +inf (it is 1) or -inf (it is 0); values and gradients are free of
    NaN there.
    """

    logits: Tensor

    def at(self, u: Tensor) -> Int[Array, "..."]:
        """The draw u < P(1) made of uniform noise `u` in [0, 1): integers. NaN logits give 0."""
        return (u < jax.nn.sigmoid(self.logits)).astype(int)

    def sample(self, key: Key) -> Int[Array, "..."]:
        """One draw, integers in {0, 1} of the shape of the logits."""
        dtype = jnp.result_type(self.logits, float)
        return self.at(jax.random.uniform(key, jnp.shape(self.logits), dtype))

    def log_prob(self, x: ArrayLike) -> Tensor:
        """Elementwise log P(x), in nats, of integers or floats in {0, 1}; others give NaN."""
        x = jnp.asarray(x)
        log_p1, log_p0 = jax.nn.log_sigmoid(self.logits), jax.nn.log_sigmoid(-self.logits)
        return jnp.where(x == 1, log_p1, jnp.where(x == 0, log_p0, jnp.nan))

    def kl(self, p: "Bernoulli") -> Tensor:
        """Elementwise KL(self || p), in nats; inf where p excludes what self allows.

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
