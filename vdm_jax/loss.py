"""The variational bound of a diffusion model, term by term.

-log p(x) <= reconstruction + prior + diffusion (VDM eq. 11), each per example and in nats. Nothing
here knows a network: `denoise(z_t, gamma_t)` and `gamma(t)` are plain callables.

With a number of `levels` the data are integers and p(x) is a probability, so that the bound can be
told in bits per dim. With `levels=None` the data are x itself, continuous, and p(x) is a density:
its nats depend on the scale of x and may be negative, and must not be compared with the former.
"""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks, pixels, timestep
from vdm_jax.distributions import Gaussian, excess
from vdm_jax.parameterization import split, to_eps
from vdm_jax.process import expand, marginal, variance_log_ratio
from vdm_jax.types import Denoise, Gamma, Images, Key, Kind, PerExample, ReverseVar, Tensor

__all__ = [
    "ElboTerms",
    "NoiseLevel",
    "bits_per_dim",
    "diffusion",
    "diffusion_at",
    "draw",
    "elbo",
    "expected_reconstruction",
    "nats_per_dim",
    "noise",
    "noise_level",
    "prior",
    "reconstruction",
    "sum_event",
    "terms",
    "to_data",
]


class ElboTerms(NamedTuple):
    """The three terms of the negative bound, each [batch], in nats."""

    reconstruction: PerExample
    prior: PerExample
    diffusion: PerExample

    @property
    def total(self) -> PerExample:
        """Their sum [batch]: an estimate of an upper bound on -log p(x), in nats."""
        return self.reconstruction + self.prior + self.diffusion


def reconstruction(
    images: Images | Tensor, eps_0: Tensor, gamma_0: ArrayLike, levels: int | None
) -> PerExample:
    """-log p(x|z_0) at z_0 = alpha_0 x + sigma_0 eps_0 (VDM eq. 11, second term): [batch] nats.

    Args:
      images: integers in [0, levels), [batch, *event] (others give NaN); without levels x itself,
        floats [batch, *event].
      eps_0: standard-normal noise of the same shape.
      gamma_0: a scalar or [batch].
      levels: p(x|z_0) is `pixels.log_prob`, the discretised decoder; with None the Gaussian
        density N(x; z_0 / alpha_0, sigma_0^2 / alpha_0^2).
    """
    if np.shape(images) != np.shape(eps_0):
        got = np.shape(eps_0)
        raise ValueError(f"images {np.shape(images)} and eps_0 {got} differ in shape.")
    eps_0 = jnp.asarray(eps_0)
    x = to_data(images, levels)
    # z_0 / alpha_0 = x + (sigma_0 / alpha_0) eps_0.
    var = jnp.exp(expand(gamma_0, x))
    if levels is None:
        # As a density of the noise between them: x minus z_0 / alpha_0 would cancel.
        noise = Gaussian(jnp.zeros_like(x), var)
        return -sum_event(noise.log_prob(noise.at(eps_0)))
    z_0_rescaled = Gaussian(x, var).at(eps_0)
    return -sum_event(pixels.log_prob(images, z_0_rescaled, gamma_0, levels))


def expected_reconstruction(
    images: Images | Tensor, gamma_0: ArrayLike, levels: int | None
) -> PerExample:
    """E[-log p(x|z_0)] over z_0 ~ q(z_0|x): `reconstruction` without its noise, [batch] nats.

    `pixels.expected_log_prob`, exact up to rounding; without levels the entropy of
    N(0, sigma_0^2 / alpha_0^2). `gamma_0` is a scalar.
    """
    if levels is not None:
        return -sum_event(pixels.expected_log_prob(images, gamma_0, levels))
    x = to_data(images, levels)
    return sum_event(jnp.broadcast_to(0.5 * (math.log(2 * math.pi) + 1.0 + gamma_0), x.shape))


def to_data(images: Images | Tensor, levels: int | None) -> Tensor:
    """x in [-1, 1] of integers (`pixels.encode`); without levels, `images` must be x itself.

    Raises ValueError for integers without levels, and for what has no batch axis.
    """
    if not np.shape(images):
        raise ValueError(f"images must be [batch, *event], got one number, {images}.")
    if levels is not None:
        return pixels.encode(images, levels)
    x = jnp.asarray(images)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"levels=None is for continuous data, floats, got {x.dtype}.")
    return x


def prior(x: Tensor, gamma_1: ArrayLike) -> PerExample:
    """KL(q(z_1|x) || N(0, I)) (VDM eq. 11, first term): [batch] nats, for x [batch, *event]."""
    x = jnp.asarray(x)
    q = marginal(x, gamma_1)
    return sum_event(q.kl(Gaussian(jnp.zeros_like(x), jnp.ones_like(x))))


def diffusion(
    x: Tensor,
    eps: Tensor,
    t: PerExample,
    denoise: Denoise,
    gamma: Gamma,
    num_steps: int | None = None,
    kind: Kind = "eps",
    reverse_var: ReverseVar = "posterior",
) -> PerExample:
    """The diffusion loss at times `t`, whose expectation over t ~ U[0, 1] is the bound's term.

    In continuous time (`num_steps=None`) gamma'(t) / 2 ||eps - eps_hat||^2 (VDM eq. 17);
    with T = `num_steps` the time is rounded up to the grid i / T and the loss is
    T / 2 (SNR(s) / SNR(t) - 1) ||eps - eps_hat||^2 (VDM eq. 13 and 14).

    That is T KL(q(z_s|z_t, x) || p(z_s|z_t)) where p has the posterior's variance. If its variance
    is 1 / r times as large, r = (sigma_s^2 / sigma_t^2)^share (`process.reverse`), the KL is
    1/2 sum (r - 1 - log r) + r/2 (SNR(s) / SNR(t) - 1) ||eps - eps_hat||^2. In continuous time r
    is 1 and the first sum, of second order in the step, nothing: no variance makes a difference.

    Args:
      x: data in [-1, 1], [batch, *event].
      eps: standard-normal noise, [batch, *event].
      t: times in [0, 1], [batch].
      denoise: (z_t, gamma_t) -> prediction.
      gamma: t -> gamma(t), both [batch]; differentiated by `jax.jvp`.
      num_steps: T, or None for continuous time.
      kind: what `denoise` predicts: "eps", "x", "v" or "score".
      reverse_var: the variance of p(z_s|z_t): "posterior" (the paper's), "transition", or "learned"
        by a `denoise` that returns (prediction, share), elementwise shares in [0, 1].

    Returns:
      [batch], in nats.

    Raises:
      ValueError: for a num_steps below 1, an unknown kind, shapes that do not agree, or, where
        they are known, times out of [0, 1] and a gamma that falls.
    """
    checks.times(t)
    x, eps, t = jnp.asarray(x), jnp.asarray(eps), checks.as_float(t)
    if x.shape != eps.shape:
        raise ValueError(f"x {x.shape} and eps {eps.shape} differ in shape.")
    if t.shape != x.shape[:1]:
        raise ValueError(f"t must be [{x.shape[0]}], one time per example, got shape {t.shape}.")
    gamma_s, gamma_t, weight = noise_level(t, gamma, num_steps)
    if num_steps is None or reverse_var == "posterior":
        return diffusion_at(x, eps, gamma_t, weight, denoise, kind, reverse_var)
    square, share = _squared_error(x, eps, gamma_t, denoise, kind, reverse_var)
    log_r = -share * variance_log_ratio(expand(gamma_s, x), expand(gamma_t, x))
    r = jnp.exp(log_r)
    wider = num_steps * excess(jnp.expm1(log_r), r)
    return 0.5 * sum_event(wider + r * expand(weight, x) * square)


class NoiseLevel(NamedTuple):
    """What the diffusion loss takes of the schedule, each [batch]."""

    gamma_s: PerExample
    """Of the step's earlier end; in continuous time gamma_t."""
    gamma_t: PerExample
    weight: PerExample
    """Of half the squared error."""


def noise_level(t: PerExample, gamma: Gamma, num_steps: int | None) -> NoiseLevel:
    """gamma(t) and the weight gamma'(t) (VDM eq. 17); for T steps those of the grid's step.

    There t is rounded up to i / T, s is (i - 1) / T, and the weight T (SNR(s) / SNR(t) - 1) (VDM
    eq. 14). Raises ValueError for a num_steps below 1, or a gamma that returns another shape.
    """
    if num_steps is None:
        gamma_t, weight = jax.jvp(gamma, (t,), (jnp.ones_like(t),))
        gamma_s = gamma_t
    else:
        s, t = timestep.grid(t, num_steps)
        gamma_t, gamma_s = gamma(t), gamma(s)
        # SNR(s)/SNR(t) - 1: as gamma_s approaches gamma_t only expm1 keeps the digits.
        weight = num_steps * jnp.expm1(gamma_t - gamma_s)
    if jnp.shape(gamma_t) != t.shape:
        got = jnp.shape(gamma_t)
        raise ValueError(f"gamma must map {t.shape} to {t.shape}, but returned {got}.")
    known = checks.known(weight)
    if known is not None and not np.all((known >= 0.0) & (known < np.inf)):
        at = int(np.argmin((known >= 0.0) & (known < np.inf)))
        raise ValueError(
            f"gamma must rise with t, and by so little in a step that exp of it is a {t.dtype}; "
            f"about t = {t[at]} the loss would have the weight {known[at]}."
        )
    return NoiseLevel(gamma_s, gamma_t, weight)


def diffusion_at(
    x: Tensor,
    eps: Tensor,
    gamma_t: PerExample,
    weight: PerExample,
    denoise: Denoise,
    kind: Kind = "eps",
    reverse_var: ReverseVar = "posterior",
) -> PerExample:
    """`diffusion` where the schedule's values are known: weight / 2 ||eps - eps_hat||^2, nats.

    `gamma_t` and `weight` are [batch]; the weight is gamma'(t) in continuous time (VDM eq. 17).
    `reverse_var` only says what `denoise` returns: in discrete time this is the loss of the
    posterior's variance.
    """
    square, _ = _squared_error(x, eps, gamma_t, denoise, kind, reverse_var)
    return 0.5 * weight * sum_event(square)


def _squared_error(
    x: Tensor,
    eps: Tensor,
    gamma_t: PerExample,
    denoise: Denoise,
    kind: Kind,
    reverse_var: ReverseVar,
) -> tuple[Tensor, Tensor | float]:
    """(eps - eps_hat)^2 elementwise, and the share of `process.reverse`."""
    z_t = marginal(x, gamma_t).at(eps)
    prediction, share = split(denoise(z_t, gamma_t), reverse_var)
    return jnp.square(eps - to_eps(prediction, z_t, gamma_t, kind)), share


def elbo(
    key: Key,
    images: Images | Tensor,
    denoise: Denoise,
    gamma: Gamma,
    levels: int | None = 256,
    num_steps: int | None = None,
    kind: Kind = "eps",
    timesteps: timestep.Method = "antithetic",
    reverse_var: ReverseVar = "posterior",
) -> ElboTerms:
    """Returns one unbiased sample of the three terms of the bound, for each of a batch of images.

    Args:
      key: gives the times and the noise.
      images: integers in [0, levels), [batch, *event]; without levels x itself, floats.
      denoise, gamma, num_steps, kind, reverse_var: as for `diffusion`.
      levels: the number of values a pixel can take, for a bound on -log of a probability; None for
        continuous data and a bound on -log of a density (`reconstruction`).
      timesteps: "antithetic" (low-discrepancy over the batch) or "uniform" (independent).

    Returns:
      `ElboTerms`, each [batch] in nats; `.total` is their sum.
    """
    eps_0, eps, t = draw(key, np.shape(images), timesteps)
    x = to_data(images, levels)
    at_t = diffusion(x, eps, t, denoise, gamma, num_steps, kind, reverse_var)
    return terms(images, at_t, gamma, levels, eps_0)


def terms(
    images: Images | Tensor,
    at_t: PerExample,
    gamma: Gamma,
    levels: int | None,
    eps_0: Tensor | None = None,
) -> ElboTerms:
    """Returns the terms of the bound whose diffusion term is `at_t`, [batch] nats.

    Without `eps_0` the reconstruction is its expectation over z_0 (`expected_reconstruction`).
    """
    x = to_data(images, levels)
    ends = gamma(jnp.array([0.0, 1.0], x.dtype))
    if jnp.shape(ends) != (2,):
        raise ValueError(f"gamma must map (2,) to (2,), but returned {jnp.shape(ends)}.")
    gamma_0, gamma_1 = ends
    if eps_0 is None:
        at_0 = expected_reconstruction(images, gamma_0, levels)
    else:
        at_0 = reconstruction(images, eps_0, gamma_0, levels)
    return ElboTerms(at_0, prior(x, gamma_1), at_t)


def draw(
    key: Key, shape: Sequence[int], timesteps: timestep.Method = "antithetic"
) -> tuple[Tensor, Tensor, PerExample]:
    """Returns what `elbo` draws for images of a shape: eps_0 and eps of that shape, t [batch]."""
    shape = checks.shape(shape, "the shape of images")
    key_t, key_eps, key_eps_0 = jax.random.split(key, 3)
    t = timestep.draw(key_t, shape[0], timesteps)
    return jax.random.normal(key_eps_0, shape), jax.random.normal(key_eps, shape), t


def noise(keys: Key, event_shape: Sequence[int]) -> Tensor:
    """Returns eps [batch, *event] of one key per example, as an evaluation draws it."""
    # The first half, once z_0's, is left over: figures of one key stay comparable.
    shape = (2, *event_shape)
    return jax.vmap(lambda key: jax.random.normal(key, shape)[1])(keys)


def bits_per_dim(nats: ArrayLike, event_shape: Sequence[int]) -> Tensor:
    """Nats per example -> bits per dimension, nats / (prod(event_shape) ln 2): of a probability."""
    return jnp.asarray(nats) / (_dims(event_shape) * math.log(2.0))


def nats_per_dim(nats: ArrayLike, event_shape: Sequence[int]) -> Tensor:
    """Nats per example -> nats per dimension, nats / prod(event_shape): of a density."""
    return jnp.asarray(nats) / _dims(event_shape)


def _dims(event_shape: Sequence[int]) -> int:
    sizes = tuple(event_shape) if isinstance(event_shape, Sequence) else event_shape
    whole = isinstance(sizes, tuple) and all(isinstance(size, Integral) for size in sizes)
    if not whole or min(sizes, default=1) < 1:
        raise ValueError(
            f"event_shape must be a shape with at least one element, got {event_shape!r}."
        )
    return math.prod(sizes)


def sum_event(elementwise: Tensor) -> PerExample:
    """Sum over all axes but the first."""
    return jnp.sum(elementwise, axis=tuple(range(1, jnp.ndim(elementwise))))
