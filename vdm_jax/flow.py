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
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vdm_jax import checks, cnf, pixels
from vdm_jax.bounds import importance_weighted
from vdm_jax.cnf import LogProb, Sample
from vdm_jax.ode import DEFAULT, Solver
from vdm_jax.parameterization import split, to_v
from vdm_jax.process import expand
from vdm_jax.schedule import alpha, sigma
from vdm_jax.types import Images, Key, PerExample, Tensor
from vdm_jax.vdm import VDM

__all__ = [
    "DequantizedNats",
    "Solver",
    "data_log_prob",
    "dequantized_nats",
    "drift",
    "log_prob",
    "sample",
]


class DequantizedNats(NamedTuple):
    """A bound on -log P(image), and its cost."""

    nats: PerExample
    """Bound on -log P(image), [batch]."""
    num_evaluations: Array
    """Evaluations of the drift, each one call of the denoiser, over all the draws."""


def drift(vdm: VDM, z: Tensor, gamma: ArrayLike) -> Tensor:
    """Returns dz / dgamma = (alpha sigma / 2) v_hat(z, gamma), the probability flow.

    z is [batch, *event], as is the drift, and gamma a scalar or [batch] (Song et al. 2021).
    """
    per_example = jnp.broadcast_to(jnp.asarray(gamma, z.dtype), z.shape[:1])
    prediction, _ = split(vdm.denoise(z, per_example), vdm.reverse_var)
    v = to_v(prediction, z, per_example, vdm.kind)
    gamma = expand(per_example, z)
    return 0.5 * alpha(gamma) * sigma(gamma) * v


def log_prob(
    vdm: VDM,
    z_0: Tensor,
    solver: Solver = DEFAULT,
    key: Key | None = None,
) -> LogProb:
    """Returns log p(z_0) of the flow with N(0, I) at gamma_1, for each of a batch of latents.

    Differentiable by reverse mode, in the end points as in what `vdm.denoise` closes over.

    Args:
      vdm: the model; of its schedule the end points are used, gamma(0) < gamma(1).
      z_0: latents at gamma_0, [batch, *event]; its dtype is that of the computation.
      solver: tolerances, trace and gradient.
      key: gives the probes of the trace "hutchinson".

    Returns:
      `LogProb`, whose z is z_1. Where the solver gave up (max_steps, or a denoiser that is not
      finite) log_prob and z are NaN for the whole batch; an example not finite from the start is
      NaN by itself.

    Raises:
      ValueError: for a setting out of range, or hutchinson without a key.
    """
    z_0, ends = _checked(vdm, z_0)
    return cnf.log_prob(z_0, _field(vdm), *ends, solver=solver, key=key)


def sample(
    vdm: VDM,
    z_1: Tensor,
    solver: Solver = DEFAULT,
) -> Sample:
    """Returns the flow from z_1 back to z_0: of z_1 ~ N(0, I) it makes a sample.

    The inverse of `log_prob`'s way from z_0 to z_1, with the same arguments, errors and NaNs;
    `vdm_jax.sampler.to_images` makes pixels of z_0.
    """
    z_1, ends = _checked(vdm, z_1)
    return cnf.sample(z_1, _field(vdm), *ends, solver)


def data_log_prob(
    vdm: VDM,
    x: Tensor,
    solver: Solver = DEFAULT,
    key: Key | None = None,
) -> LogProb:
    """Returns log p(x) in nats of x = z_0 / alpha_0 itself, by `log_prob` of z_0."""
    x = cnf.as_batch(x, "x")
    scale = alpha(_ends(vdm, x)[0])
    of_z = log_prob(vdm, scale * x, solver, key)
    return of_z._replace(log_prob=of_z.log_prob + math.prod(x.shape[1:]) * jnp.log(scale))


def dequantized_nats(
    vdm: VDM,
    key: Key,
    images: Images,
    dequantization: pixels.Dequantization = "truncated_normal",
    num_samples: int = 1,
    solver: Solver = DEFAULT,
) -> DequantizedNats:
    """Returns one sample of a bound on -log P(image), for each of a batch of images.

    With K = `num_samples` draws z_0^k ~ q(z_0|image) of `pixels.dequantize` the bound is
    -(logsumexp_k(log p(z_0^k) - log q(z_0^k|image)) - log K): above -log P(image) in expectation,
    and no higher with more draws. "hutchinson" keeps that for K = 1 only: the noise of its log p
    raises the mean of exp(log p), so with K > 1 the bound may come out too low.

    `key` gives the draws and the probes. images are integers in [0, vdm.levels), [batch, *event];
    others give NaN, as does any draw on which the solver gave up.
    """
    checks.count(num_samples, "num_samples")
    gamma_0 = vdm.gamma(jnp.array([0.0, 1.0]))[0]

    def draw(key: Key) -> tuple[PerExample, Array]:
        key_z, key_probes = jax.random.split(key)
        levels = cast(int, vdm.levels)  # None is refused there
        z_0, log_q = pixels.dequantize(key_z, images, levels, gamma_0, dequantization)
        p = log_prob(vdm, z_0, solver, key_probes)
        return p.log_prob - log_q, p.steps.evaluations

    log_weights, num_evaluations = jax.lax.map(draw, jax.random.split(key, num_samples))
    return DequantizedNats(importance_weighted(log_weights), jnp.sum(num_evaluations))


def _field(vdm: VDM) -> cnf.Field:
    """Returns the drift as the field of a normalising flow whose time is gamma."""
    return lambda gamma, z: drift(vdm, z, gamma)


def _ends(vdm: VDM, z: Tensor) -> tuple[Tensor, Tensor]:
    """Returns gamma_0 and gamma_1."""
    gamma_0, gamma_1 = vdm.gamma(jnp.array([0.0, 1.0], z.dtype))
    return gamma_0, gamma_1


def _checked(vdm: VDM, z: ArrayLike) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Returns `z` and gamma's ends. Raises ValueError where they are known and can't be meant."""
    z = cnf.as_batch(z, "latents")
    ends = _ends(vdm, z)
    low, high = map(checks.known, ends)
    if low is not None and high is not None and not -math.inf < low < high < math.inf:
        raise ValueError(f"gamma(0) must be below gamma(1), both finite, got {low} and {high}.")
    # In the wrong order though unknown until it's computed: no number.
    return z * jnp.where(ends[0] < ends[1], 1.0, jnp.nan), ends
