"""Data of which all is known: a mixture of Gaussians, and the diffusion of it in closed form.

Each component N(m, v) stays a Gaussian under the process, so q(z_t), its score, the optimal
denoiser E[x|z_t] and the true q(z_s|z_t) are mixtures, or averages over one. With v = 0 the
components are points: the distribution of a finite dataset.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from vdm_jax import checks
from vdm_jax.gaussian import Gaussian
from vdm_jax.process import marginal_of_gaussian
from vdm_jax.schedule import alpha, step_alpha, step_beta
from vdm_jax.types import Key, Tensor


class Mixture(NamedTuple):
    """The sum over k of softmax(logits)_k N(means_k, var_k I), or one such mixture per example."""

    logits: Tensor  # logarithms of the weights, [*batch, k], where `batch` is empty or one axis
    means: Tensor  # [*batch, k, *event]
    var: Tensor  # broadcasts against means; zeros give no `log_prob` until `noised`

    @classmethod
    def of(cls, weights: ArrayLike, means: ArrayLike, var: ArrayLike) -> "Mixture":
        """Returns the mixture of weights [k] (positive, of any sum) and means [k, *event].

        `var` is a scalar, [k] (isotropic components) or [k, *event].
        """
        weights, means, var = (jnp.asarray(v) for v in (weights, means, var))
        kind = jnp.result_type(weights, means, var, float)
        weights, means, var = (v.astype(kind) for v in (weights, means, var))
        if weights.ndim != 1 or means.shape[:1] != weights.shape:
            got = f"{weights.shape} and {means.shape}"
            raise ValueError(f"weights must be [k] and means [k, *event], got {got}.")
        if var.shape not in ((), weights.shape, means.shape):
            wanted = f"a scalar, [k] or [k, *event] for means of shape {means.shape}"
            raise ValueError(f"var must be {wanted}, got shape {var.shape}.")
        for name, value, fine in (("weights", weights, weights > 0.0), ("var", var, var >= 0.0)):
            known = checks.known(fine & jnp.isfinite(value))
            if known is not None and not known.all():
                least = "positive" if name == "weights" else "nonnegative"
                raise ValueError(f"{name} must be {least} and finite, got {value}.")
        return cls(jnp.log(weights), means, var.reshape(var.shape + (1,) * (means.ndim - var.ndim)))

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one x."""
        return self.means.shape[self.logits.ndim :]

    def sample(self, key: Key, n: int) -> Tensor:
        """Returns independent draws, [n, *batch, *event]."""
        key_k, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_k, self.logits, shape=(n, *self.logits.shape[:-1]))
        k, axis = self._beside(k[..., None]), self.logits.ndim

        def chosen(values: Tensor) -> Tensor:
            values = jnp.broadcast_to(values, self.means.shape)[None]
            return jnp.squeeze(jnp.take_along_axis(values, k, axis), axis)

        return Gaussian(chosen(self.means), chosen(self.var)).sample(key_noise)

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns the joint log-density over the event, x [..., *event] -> [...], in nats.

        The leading axes of x broadcast against `batch`, here and in `score`.
        """
        return logsumexp(self._log_joint(x), axis=-1)

    def score(self, x: Tensor) -> Tensor:
        """Returns the gradient of `log_prob` at x [..., *event], of that shape."""
        return self._average(self._log_joint(x), (self.means - self._against(x)) / self.var)

    def moment_matched(self) -> Gaussian:
        """Returns the Gaussian of the same mean and variance of each element, [*batch, *event].

        Of all diagonal Gaussians p it has the smallest KL(self || p).
        """
        mean = self._average(self.logits, self.means)
        square = jnp.square(self.means - self._against(mean))
        return Gaussian(mean, self._average(self.logits, self.var + square))

    def noised(self, gamma_t: ArrayLike) -> "Mixture":
        """Returns q(z_t) of data of this mixture; a gamma_t [batch] gives one per example."""
        gamma_t = jnp.asarray(gamma_t)
        batch = jnp.broadcast_shapes(gamma_t.shape, self.logits.shape[:-1])
        means = jnp.broadcast_to(self.means, (*batch, *self.means.shape[self.logits.ndim - 1 :]))
        q = marginal_of_gaussian(Gaussian(means, self.var), gamma_t)
        return Mixture(jnp.broadcast_to(self.logits, (*batch, self.logits.shape[-1])), *q)

    def posterior_mean(self, z_t: Tensor, gamma_t: ArrayLike) -> Tensor:
        """Returns E[x|z_t] at z_t [batch, *event], the optimal denoiser, of kind "x".

        m + alpha v / (alpha^2 v + sigma^2) (z_t - alpha m), averaged by the components' odds.
        """
        q = self.noised(gamma_t)
        gain = alpha(q._beside(jnp.asarray(gamma_t)[..., None])) * self.var / q.var
        return q._average(q._log_joint(z_t), self.means + gain * (q._against(z_t) - q.means))

    def reverse(self, z_t: Tensor, gamma_s: ArrayLike, gamma_t: ArrayLike) -> "Mixture":
        """Returns the true q(z_s|z_t) of this data, s < t: a mixture for each z_t [batch, *event].

        By Bayes' rule in each component, where q(z_s) = N(m_s, v_s) and q(z_t) = N(m_t, v_t):
        the mean m_s + r v_s / v_t (z_t - m_t) and the variance v_s b / v_t, with the factor r and
        the variance b of q(z_t|z_s) (VDM eq. 20 to 22); its weight is its odds given z_t.
        """
        q_s, q_t = self.noised(gamma_s), self.noised(gamma_t)
        gamma_s, gamma_t = (q_t._beside(jnp.asarray(g)[..., None]) for g in (gamma_s, gamma_t))
        gain = jnp.sqrt(step_alpha(gamma_s, gamma_t)) * q_s.var / q_t.var
        means = q_s.means + gain * (q_t._against(z_t) - q_t.means)
        return Mixture(q_t._log_joint(z_t), means, q_s.var * step_beta(gamma_s, gamma_t) / q_t.var)

    def _log_joint(self, x: Tensor) -> Tensor:
        """Returns the log of weight times density for each component, [..., k]."""
        elementwise = Gaussian(self.means, self.var).log_prob(self._against(x))
        axes = tuple(range(-len(self.event_shape), 0))
        return jax.nn.log_softmax(self.logits) + jnp.sum(elementwise, axis=axes)

    def _average(self, log_odds: Tensor, values: Tensor) -> Tensor:
        """Returns the mean over components of values [..., k, *event], by log_odds [..., k]."""
        odds = self._beside(jax.nn.softmax(log_odds))
        return jnp.sum(odds * values, axis=-1 - len(self.event_shape))

    def _against(self, x: Tensor) -> Tensor:
        """Returns x [..., *event] with an axis for the components, [..., 1, *event]."""
        return jnp.expand_dims(x, -1 - len(self.event_shape))

    def _beside(self, values: Tensor) -> Tensor:
        """Returns values [..., k] or [..., 1] with axes for the event, [..., k, 1, ...]."""
        return values.reshape(values.shape + (1,) * len(self.event_shape))


def negentropy(mixture: Mixture) -> Tensor:
    """Returns the KL of a one-dimensional mixture to its best Gaussian, `moment_matched`.

    It is [*batch], in nats, by the trapezium rule on 2001 points, of which two should lie within
    the narrowest component's standard deviation. Meant for float64.
    """
    best = mixture.moment_matched()
    x, spacing = _grid(mixture, 2001)
    axes = tuple(range(x.ndim - len(mixture.event_shape), x.ndim))
    log_q, log_n = mixture.log_prob(x), jnp.sum(best.log_prob(x), axis=axes)
    q, n, u = jnp.exp(log_q), jnp.exp(log_n), log_q - log_n
    # q u - q + n, which integrates to the same as q u and is nowhere negative: no cancellation
    # between points. Where u is small, as n (u e^u - (e^u - 1)), nor at a point.
    near = jnp.clip(u, -1.0, 1.0)
    small = n * (near * jnp.exp(near) - jnp.expm1(near))
    return spacing * jnp.sum(jnp.where(jnp.abs(u) < 1.0, small, q * u - q + n), axis=0)


def reverse_negentropy(data: Mixture, gamma_s: ArrayLike, gamma_t: ArrayLike) -> Tensor:
    """Returns E KL(q(z_s|z_t) || its best Gaussian) over z_t ~ q(z_t), in nats, in one dimension.

    It is the loss of a generative step that no network can make good, as its p(z_s|z_t) is
    Gaussian, and vanishes as the cube of the step: with h = sigma_t^2 (gamma_t - gamma_s), the
    skewness tends to h^(3/2) (log q)'''(z_t), the KL to a twelfth of its square.
    """
    q_t = data.noised(gamma_t)
    z_t, spacing = _grid(q_t, 201)
    at_z = negentropy(data.reverse(z_t, gamma_s, gamma_t))
    return spacing * jnp.sum(jnp.exp(q_t.log_prob(z_t)) * at_z)


def _grid(mixture: Mixture, num_points: int) -> tuple[Tensor, Tensor]:
    """Returns points [num_points, *batch, *event] over all the mixture, and their distance."""
    if math.prod(mixture.event_shape) != 1:
        got = mixture.event_shape
        raise ValueError(f"quadrature wants one-dimensional events, got events of shape {got}.")
    axis = mixture.logits.ndim - 1
    best = mixture.moment_matched()
    # Beyond nine standard deviations lies a mass below 1e-18.
    reach, of_best = 9.0 * jnp.sqrt(mixture.var), 9.0 * jnp.sqrt(best.var)
    low = jnp.minimum(jnp.min(mixture.means - reach, axis), best.mean - of_best)
    high = jnp.maximum(jnp.max(mixture.means + reach, axis), best.mean + of_best)
    spacing = (high - low).reshape(mixture.logits.shape[:-1]) / (num_points - 1)
    return jnp.linspace(low, high, num_points), spacing
