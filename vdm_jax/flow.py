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

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vdm_jax import checks, cnf, loss, masks, mixed, pixels, timestep
from vdm_jax.bounds import importance_weighted
from vdm_jax.cnf import LogProb, Sample
from vdm_jax.mixed import Levels
from vdm_jax.ode import DEFAULT, Solver
from vdm_jax.parameterization import split, to_v
from vdm_jax.process import expand
from vdm_jax.schedule import alpha, sigma
from vdm_jax.transforms import Coefficients
from vdm_jax.types import Images, Key, PerExample, Tensor
from vdm_jax.vdm import VDM


class DequantizedNats(NamedTuple):
    """A bound on -log P(image), [batch], and the calls of the denoiser over all the draws."""

    nats: PerExample
    num_evaluations: Array


def drift(vdm: VDM, z: Tensor, gamma: ArrayLike) -> Tensor:
    """Returns dz / dgamma = (alpha sigma / 2) v_hat(z, gamma), at a gamma scalar or [batch].

    A schedule of each feature gives gamma [1, *event] or [batch, *event]. Padding stands still.
    """
    per_example = timestep.of_batch(jnp.asarray(gamma, z.dtype), z)
    prediction, _ = split(vdm.predict(z, per_example), vdm.reverse_var)
    v = to_v(prediction, z, per_example, vdm.kind)
    gamma = expand(per_example, z)
    return masks.keep(0.5 * alpha(gamma) * sigma(gamma) * v, vdm.mask)


def _field(vdm: VDM, ends: tuple[Tensor, Tensor]) -> tuple[cnf.Field, tuple[Any, Any]]:
    """Returns the flow with its start and end: in gamma, or in t if each feature has its own."""
    if ends[0].ndim == 0:
        return lambda gamma, z: drift(vdm, z, gamma), ends

    def in_time(t: Tensor, z: Tensor) -> Tensor:
        gamma, rate = jax.jvp(lambda t: timestep.steps(vdm.gamma, t[None])[0], (t,), (t * 0 + 1,))
        return rate * drift(vdm, z, gamma)

    return in_time, (0.0, 1.0)


def log_prob(vdm: VDM, z_0: Tensor, solver: Solver = DEFAULT, key: Key | None = None) -> LogProb:
    """Returns log p(z_0) of the flow with N(0, I) at gamma_1, by `cnf.log_prob`; its z is z_1."""
    _ = vdm.elbo  # a guided model has none
    z_0, ends = _checked(vdm, z_0)
    field, times = _field(vdm, ends)
    base = partial(cnf.standard_normal, mask=vdm.mask)
    return cnf.log_prob(z_0, field, *times, base, solver, key)


def sample(vdm: VDM, z_1: Tensor, solver: Solver = DEFAULT) -> Sample:
    """Returns the flow from z_1 ~ N(0, I) back to z_0 (`sampling.to_images` makes it pixels)."""
    z_1, ends = _checked(vdm, z_1)
    field, times = _field(vdm, ends)
    return cnf.sample(z_1, field, *times, solver)


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
    others give NaN, as does any draw on which the solver gave up. Features without levels are not
    dequantised: it is minus their density, of x = z_0 / alpha_0 itself.
    """
    checks.count(num_samples, "num_samples")
    _ = vdm.elbo  # a guided model has none
    images = masks.keep(images, vdm.mask)
    gamma_0, gamma_1 = timestep.end_points(vdm.gamma)
    fixed = vdm
    if gamma_0.ndim == 0:
        # The end points are computed once, and not again in the loop, where they round otherwise.
        fixed = vdm._replace(gamma=lambda t: jnp.where(t == 0.0, gamma_0, gamma_1).astype(t.dtype))

    def draw(key: Key) -> tuple[PerExample, Array]:
        key_z, key_probes = jax.random.split(key)
        z_0, log_q = _dequantized(key_z, images, gamma_0, vdm.levels, dequantization)
        p = log_prob(fixed, z_0, solver, key_probes)
        return p.log_prob - loss.sum_event(log_q, vdm.mask), p.steps.evaluations

    log_weights, num_evaluations = jax.lax.map(draw, jax.random.split(key, num_samples))
    return DequantizedNats(importance_weighted(log_weights), jnp.sum(num_evaluations))


def _dequantized(
    key: Key, images: Images, gamma_0: Tensor, levels: Levels, method: pixels.Dequantization
) -> tuple[Tensor, Tensor]:
    """Returns z_0 and log q(z_0|images) elementwise: of continuous data alpha_0 x, -log alpha_0.

    That is what makes of z_0's density that of x. Of `Coefficients` it is of W x, where log q
    belongs to the pixels and only its sum over the event means something.
    """
    gamma_0 = expand(gamma_0, images)
    if isinstance(levels, tuple):
        found = [
            _dequantized(jax.random.fold_in(key, i), mixed.integers(of, level), g, level, method)
            for i, (level, of, g) in enumerate(mixed.parts(levels, images, gamma_0))
        ]
        z_0, log_q = (mixed.joined(levels, each) for each in zip(*found, strict=True))
        return z_0, log_q
    scale, log_q = alpha(gamma_0), jnp.zeros(())
    if isinstance(levels, Coefficients):
        x = images
        if levels.levels is not None:  # by noise within each pixel's bin, whatever gamma_0 is
            noise = expand(levels.gamma_of_pixels(gamma_0, images), images)
            z, log_q = pixels.dequantize(key, images, levels.levels, noise, method)
            x, log_q = z / alpha(noise), log_q + jnp.log(alpha(noise))
        x = loss.to_data(cnf.as_batch(x, "data without levels"), None)
        images, levels = levels.transform.forward(x), None
    if levels is not None:
        return pixels.dequantize(key, images, levels, gamma_0, method)
    images = cnf.as_batch(images, "data without levels")
    return scale * images, jnp.broadcast_to(log_q - jnp.log(scale), jnp.shape(images))


def _checked(vdm: VDM, z: ArrayLike) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Returns `z` and gamma's ends. Raises ValueError where they are known and can't be meant."""
    z = masks.keep(cnf.as_batch(z, "latents"), vdm.mask)
    gamma_0, gamma_1 = timestep.end_points(vdm.gamma, z.dtype)
    low, high = checks.known(gamma_0), checks.known(gamma_1)
    if (
        low is not None
        and high is not None
        and not (np.all(np.isfinite(low) & np.isfinite(high) & (low < high)))
    ):
        raise ValueError(f"gamma(0) must be below gamma(1), both finite, got {low} and {high}.")
    # In the wrong order though unknown until it's computed: no number.
    return z * expand(jnp.where(gamma_0 < gamma_1, 1.0, jnp.nan), z), (gamma_0, gamma_1)
