"""Exact likelihood by the probability-flow ODE.

The deterministic flow with the marginals q(z_t) of the diffusion (Song et al. 2021, eq. 13) is, for
the variance-preserving process and in the coordinate gamma = -log SNR,

    dz / dgamma = -(sigma^2 / 2) (z + score) = (alpha sigma / 2) v_hat.

No schedule appears: between its end points gamma_0 and gamma_1 any gamma(t) gives the same flow.
With z_1 ~ N(0, I) it is a continuous normalising flow (`vdm_jax.cnf`) whose field, the drift, was
never trained by likelihood. Its density is that of the latent z_0, in nats; `dequantized_nats`
makes of it a bound on the probability of an image. Needs diffrax, and is therefore not imported by
`vdm_jax` itself.
"""

import math
from typing import TYPE_CHECKING, NamedTuple, cast

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

if TYPE_CHECKING:
    from vdm_jax.vdm import VDM


class DequantizedNats(NamedTuple):
    """A bound on -log P(image), [batch], and the calls of the denoiser over all the draws."""

    nats: PerExample
    num_evaluations: Array


def drift(vdm: "VDM", z: Tensor, gamma: ArrayLike) -> Tensor:
    """Returns dz / dgamma = (alpha sigma / 2) v_hat(z, gamma), at a gamma scalar or [batch]."""
    per_example = jnp.broadcast_to(jnp.asarray(gamma, z.dtype), z.shape[:1])
    prediction, _ = split(vdm.denoise(z, per_example), vdm.reverse_var)
    v = to_v(prediction, z, per_example, vdm.kind)
    gamma = expand(per_example, z)
    return 0.5 * alpha(gamma) * sigma(gamma) * v


def log_prob(vdm: "VDM", z_0: Tensor, solver: Solver = DEFAULT, key: Key | None = None) -> LogProb:
    """Returns log p(z_0) of the flow with N(0, I) at gamma_1, by `cnf.log_prob`; its z is z_1."""
    z_0, ends = _checked(vdm, z_0)
    field = lambda gamma, z: drift(vdm, z, gamma)  # noqa: E731
    return cnf.log_prob(z_0, field, *ends, solver=solver, key=key)


def sample(vdm: "VDM", z_1: Tensor, solver: Solver = DEFAULT) -> Sample:
    """Returns the flow from z_1 ~ N(0, I) back to z_0 (`sampling.to_images` makes it pixels)."""
    z_1, ends = _checked(vdm, z_1)
    return cnf.sample(z_1, lambda gamma, z: drift(vdm, z, gamma), *ends, solver)


def data_log_prob(
    vdm: "VDM", x: Tensor, solver: Solver = DEFAULT, key: Key | None = None
) -> LogProb:
    """Returns log p(x) in nats of x = z_0 / alpha_0 itself, by `log_prob` of z_0."""
    x, (gamma_0, _) = _checked(vdm, x)
    scale = alpha(gamma_0)
    of_z = log_prob(vdm, scale * x, solver, key)
    return of_z._replace(log_prob=of_z.log_prob + math.prod(x.shape[1:]) * jnp.log(scale))


def dequantized_nats(
    vdm: "VDM",
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
    gammas = vdm.gamma(jnp.array([0.0, 1.0]))
    # Its end points are computed once, and not again in the loop, where they round otherwise.
    fixed = vdm._replace(gamma=lambda t: gammas.astype(t.dtype))

    def draw(key: Key) -> tuple[PerExample, Array]:
        key_z, key_probes = jax.random.split(key)
        levels = cast(int, vdm.levels)  # None is refused there
        z_0, log_q = pixels.dequantize(key_z, images, levels, gammas[0], dequantization)
        p = log_prob(fixed, z_0, solver, key_probes)
        return p.log_prob - log_q, p.steps.evaluations

    log_weights, num_evaluations = jax.lax.map(draw, jax.random.split(key, num_samples))
    return DequantizedNats(importance_weighted(log_weights), jnp.sum(num_evaluations))


def _checked(vdm: "VDM", z: ArrayLike) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Returns `z` and gamma's ends. Raises ValueError where they are known and can't be meant."""
    z = cnf.as_batch(z, "latents")
    gamma_0, gamma_1 = vdm.gamma(jnp.array([0.0, 1.0], z.dtype))
    low, high = checks.known(gamma_0), checks.known(gamma_1)
    if low is not None and high is not None and not -math.inf < low < high < math.inf:
        raise ValueError(f"gamma(0) must be below gamma(1), both finite, got {low} and {high}.")
    # In the wrong order though unknown until it's computed: no number.
    return z * jnp.where(gamma_0 < gamma_1, 1.0, jnp.nan), (gamma_0, gamma_1)
