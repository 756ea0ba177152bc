"""Exact likelihood by the probability-flow ODE.

The deterministic flow with the marginals q(z_t) of the diffusion (Song et al. 2021, eq. 13) is, for
the variance-preserving process and in the coordinate gamma = -log SNR,

    dz / dgamma = -(sigma^2 / 2) (z + score) = (alpha sigma / 2) v_hat.

No schedule appears: between its end points gamma_0 and gamma_1 any gamma(t) gives the same flow.
With z_1 ~ N(0, I) it is a continuous normalising flow (`vdm_jax.cnf`) whose field, the drift, was
never trained by likelihood. Its density is

    log p(z_0) = log N(z_1; 0, I) + int_{gamma_0}^{gamma_1} tr(d drift / dz) dgamma.

It is the density of the latent z_0, in nats; `dequantized_nats` makes of it a bound on the
probability of an image. A denoiser must treat each example of its batch on its own.

Needs diffrax, and is therefore not imported by `vdm_jax` itself: `from vdm_jax import flow`.
"""

import math
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vdm_jax import cnf, pixels
from vdm_jax.bounds import importance_weighted
from vdm_jax.divergence import Probes, Trace
from vdm_jax.parameterization import split, to_v
from vdm_jax.process import expand
from vdm_jax.schedule import alpha, sigma
from vdm_jax.types import Denoise, Gamma, Images, Key, Kind, PerExample, Tensor
from vdm_jax.vdm import VDM

__all__ = [
    "DequantizedNats",
    "LogProb",
    "Sample",
    "data_log_prob",
    "dequantized_nats",
    "drift",
    "log_prob",
    "sample",
]


class LogProb(NamedTuple):
    """What `log_prob` returns: densities, where the flow led, and what the solver spent."""

    log_prob: PerExample
    """log p(z_0), [batch], in nats."""
    z_1: Tensor
    """The other end of the flow, [batch, *event]."""
    num_evaluations: Array
    """Evaluations of the drift, each one call of the denoiser for the whole batch."""
    num_accepted: Array
    """Steps the solver made."""
    num_rejected: Array
    """Steps it tried and found too coarse."""


class Sample(NamedTuple):
    """What `sample` returns."""

    z_0: Tensor
    """[batch, *event]; `vdm_jax.sampler.to_images` makes pixels of it."""
    num_evaluations: Array
    num_accepted: Array
    num_rejected: Array
    """As in `LogProb`."""


class DequantizedNats(NamedTuple):
    """What `dequantized_nats` returns."""

    nats: PerExample
    """The bound on -log P(image), [batch]."""
    num_evaluations: Array
    """Evaluations of the drift, each one call of the denoiser, over all the draws."""


def drift(z: Tensor, gamma: ArrayLike, denoise: Denoise, kind: Kind = "eps") -> Tensor:
    """dz / dgamma = (alpha sigma / 2) v_hat(z, gamma), the probability flow (Song et al. 2021).

    Args:
      z: latents, [batch, *event].
      gamma: a scalar or [batch].
      denoise: (z, gamma [batch]) -> prediction.
      kind: what `denoise` predicts: "eps", "x", "v" or "score".

    Returns:
      [batch, *event]. Raises ValueError for an unknown kind or shapes that do not agree.
    """
    per_example = jnp.broadcast_to(jnp.asarray(gamma, z.dtype), z.shape[:1])
    v = to_v(denoise(z, per_example), z, per_example, kind)
    gamma = expand(per_example, z)
    return 0.5 * alpha(gamma) * sigma(gamma) * v


def log_prob(
    z_0: Tensor,
    denoise: Denoise,
    gamma_0: ArrayLike,
    gamma_1: ArrayLike,
    kind: Kind = "eps",
    trace: Trace = "exact",
    key: Key | None = None,
    probes: Probes = "rademacher",
    num_probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> LogProb:
    """log p(z_0) of the flow with N(0, I) at gamma_1, for each of a batch of latents.

    The step size is such that every example, however large the batch, has an estimated error per
    step below atol + rtol |value|, in the root mean square over z and in the log-density per
    dimension. Differentiable by reverse mode, in the end points as in what `denoise` closes over.

    Args:
      z_0: latents at gamma_0, [batch, *event]; its dtype is that of the computation.
      denoise, kind: as for `drift`.
      gamma_0, gamma_1: scalars, gamma_0 < gamma_1.
      trace: "exact", by as many forward derivatives as an event has elements, or "hutchinson", by
        one for each probe: unbiased in log p(z_0) (Grathwohl et al. 2019).
      key, probes, num_probes: the probes of "hutchinson", drawn once for the whole trajectory and
        independently for each example: "rademacher" (signs) or "gaussian".
      rtol, atol: relative and absolute tolerance, positive.
      max_steps: steps, accepted or not, after which the solver gives up.

    Returns:
      `LogProb`. Where the solver gave up (max_steps, or a denoiser that is not finite) log_prob and
      z_1 are NaN for the whole batch; an example not finite from the start is NaN by itself.

    Raises:
      ValueError: for a setting out of range, or hutchinson without a key.
    """
    z_0 = _checked(z_0, gamma_0, gamma_1)
    return LogProb(
        *cnf.log_prob(
            z_0, _field(denoise, kind), gamma_0, gamma_1, cnf.standard_normal, trace, key, probes,
            num_probes, rtol=rtol, atol=atol, max_steps=max_steps,
        )
    )  # fmt: skip


def sample(
    z_1: Tensor,
    denoise: Denoise,
    gamma_0: ArrayLike,
    gamma_1: ArrayLike,
    kind: Kind = "eps",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> Sample:
    """The flow from z_1 at gamma_1 back to z_0 at gamma_0: of z_1 ~ N(0, I) it makes a sample.

    The inverse of `log_prob`'s way from z_0 to z_1, with the same arguments, errors and NaNs.
    """
    z_1 = _checked(z_1, gamma_0, gamma_1)
    field = _field(denoise, kind)
    back = cnf.sample(z_1, field, gamma_0, gamma_1, rtol=rtol, atol=atol, max_steps=max_steps)
    return Sample(*back)


def dequantized_nats(
    key: Key,
    images: Images,
    denoise: Denoise,
    gamma: Gamma,
    levels: int = 256,
    dequantization: pixels.Dequantization = "truncated_normal",
    num_samples: int = 1,
    kind: Kind = "eps",
    trace: Trace = "exact",
    probes: Probes = "rademacher",
    num_probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> DequantizedNats:
    """One sample of a bound on -log P(image), for each of a batch of images.

    With K = `num_samples` draws z_0^k ~ q(z_0|image) of `pixels.dequantize` the bound is
    -(logsumexp_k(log p(z_0^k) - log q(z_0^k|image)) - log K): above -log P(image) in expectation,
    and no higher with more draws. "hutchinson" keeps that for K = 1 only: the noise of its log p
    raises the mean of exp(log p), so with K > 1 the bound may come out too low.

    Args:
      key: gives the draws and the probes.
      images: integers in [0, levels), [batch, *event] (others give NaN).
      gamma: the schedule, of which the end points are used.
      levels, dequantization: as for `pixels.dequantize`.
      denoise, kind, trace, probes, num_probes, rtol, atol, max_steps: as for `log_prob`.

    Returns:
      `DequantizedNats`, the bound [batch] in nats; NaN where the solver gave up on any draw.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, Integral) or num_samples < 1:
        raise ValueError(f"num_samples must be an integer of at least 1, got {num_samples!r}.")
    gamma_0, gamma_1 = gamma(jnp.array([0.0, 1.0]))

    def draw(key: Key) -> tuple[PerExample, Array]:
        key_z, key_probes = jax.random.split(key)
        z_0, log_q = pixels.dequantize(key_z, images, levels, gamma_0, dequantization)
        p = log_prob(
            z_0, denoise, gamma_0, gamma_1, kind, trace, key_probes, probes, num_probes,
            rtol, atol, max_steps,
        )  # fmt: skip
        return p.log_prob - log_q, p.num_evaluations

    log_weights, num_evaluations = jax.lax.map(draw, jax.random.split(key, num_samples))
    return DequantizedNats(importance_weighted(log_weights), jnp.sum(num_evaluations))


def data_log_prob(vdm: VDM, x: Tensor, key: Key | None = None, **solver: Any) -> PerExample:
    """Returns log p(x) [batch] in nats, of x = z_0 / alpha_0, by `log_prob` of z_0.

    `key` and `solver` are as there.
    """
    gamma_0, gamma_1 = vdm.gamma(jnp.array([0.0, 1.0], x.dtype))

    def denoise(z_t: Tensor, gamma_t: PerExample) -> Tensor:
        return split(vdm.denoise(z_t, gamma_t), vdm.reverse_var)[0]

    scale = alpha(gamma_0)
    of_z = log_prob(scale * x, denoise, gamma_0, gamma_1, vdm.kind, key=key, **solver).log_prob
    return of_z + math.prod(vdm.event_shape) * jnp.log(scale)


def _field(denoise: Denoise, kind: Kind) -> cnf.Field:
    """The drift as the field of a normalising flow whose time is gamma."""
    return lambda gamma, z: drift(z, gamma, denoise, kind)


def _checked(z: ArrayLike, gamma_0: ArrayLike, gamma_1: ArrayLike) -> Tensor:
    """`z` as an array. Raises ValueError where something can't be meant, as far as it's known."""
    z = cnf.as_batch(z, "latents")
    for name, gamma in (("gamma_0", gamma_0), ("gamma_1", gamma_1)):
        if jnp.shape(gamma) != ():
            raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(gamma)}.")
    known = not any(isinstance(gamma, jax.core.Tracer) for gamma in (gamma_0, gamma_1))
    if known and not -math.inf < float(gamma_0) < float(gamma_1) < math.inf:  # type: ignore[arg-type]
        raise ValueError(
            f"gamma_0 must be below gamma_1 (gamma grows with t), and both finite, "
            f"got gamma_0 = {gamma_0} and gamma_1 = {gamma_1}."
        )
    # In the wrong order though unknown until it's computed: no number.
    return z * jnp.where(jnp.less(gamma_0, gamma_1), 1.0, jnp.nan)
