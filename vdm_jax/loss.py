"""The variational bound of a diffusion model, term by term.

-log p(x) <= reconstruction + prior + diffusion (VDM eq. 11), each per example and in nats.

With a number of `levels` the data are integers and p(x) is a probability: the bound has bits per
dim. With `levels=None` the data are x itself, continuous, and p(x) is a density, whose nats depend
on the scale of x, may be negative, and must not be compared with the former. A tuple of levels, one
for each feature along the last axis, mixes both (`vdm_jax.mixed`). With `transforms.Coefficients`
the images are as ever, but x, eps and the latents are coefficients of an orthonormal transform.

With a `mask` [batch, *event], axes of size 1 allowed, only what is there counts (`vdm_jax.masks`).
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks, masks, mixed, pixels, timestep
from vdm_jax.distributions import Gaussian, excess
from vdm_jax.mixed import Levels
from vdm_jax.parameterization import split, to_eps
from vdm_jax.process import expand, marginal, variance_log_ratio
from vdm_jax.timestep import noise_level
from vdm_jax.transforms import Coefficients
from vdm_jax.types import Denoise, Gamma, Images, Key, Kind, PerExample, ReverseVar, Tensor


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
    images: Images | Tensor,
    eps_0: Tensor,
    gamma_0: ArrayLike,
    levels: Levels,
    mask: ArrayLike | None = None,
) -> PerExample:
    """Returns -log p(x|z_0) at z_0 = alpha_0 x + sigma_0 eps_0, [batch] nats (VDM eq. 11).

    p(x|z_0) of integers in [0, `levels`) is `pixels.log_prob` (others give NaN); without levels it
    is the density N(x; z_0 / alpha_0, sigma_0^2 / alpha_0^2) of images that are x itself. `eps_0`
    is standard-normal noise of the shape of images; `gamma_0` a scalar, [batch] or [batch, *event],
    any axis of it 1.
    """
    checks.same_shape(images, eps_0, "images", "eps_0")
    images, eps_0 = masks.keep(images, mask), jnp.asarray(eps_0)
    if isinstance(levels, tuple):
        parts = mixed.parts(levels, images, eps_0, expand(gamma_0, images), mask)
        return _sum(
            reconstruction(mixed.integers(of, level), noise, gamma, level, there)
            for level, of, noise, gamma, there in parts
        )
    x = to_data(images, levels, mask)
    # Of z_0 / alpha_0 - x = (sigma_0 / alpha_0) eps_0: the difference itself would cancel.
    noise = Gaussian(jnp.zeros_like(x), jnp.exp(expand(gamma_0, x)))
    error = noise.at(eps_0)
    if isinstance(levels, Coefficients):
        levels, error, gamma_0 = levels.decoder(error, gamma_0)
    if levels is None:
        return -sum_event(noise.log_prob(error), mask)
    return -sum_event(pixels.log_prob_of_error(images, error, gamma_0, levels), mask)


def expected_reconstruction(
    images: Images | Tensor, gamma_0: ArrayLike, levels: Levels, mask: ArrayLike | None = None
) -> PerExample:
    """Returns E[-log p(x|z_0)] over z_0 ~ q(z_0|x), exact up to rounding.

    Without levels it is the entropy of N(0, sigma_0^2 / alpha_0^2). `gamma_0` is a scalar, [batch]
    or [batch, *event], any axis of it 1.
    """
    images = masks.keep(images, mask)
    if isinstance(levels, tuple):
        parts = mixed.parts(levels, images, expand(gamma_0, images), mask)
        return _sum(
            expected_reconstruction(mixed.integers(of, level), gamma, level, there)
            for level, of, gamma, there in parts
        )
    x = to_data(images, levels, mask)
    if isinstance(levels, Coefficients):
        levels, _, gamma_0 = levels.decoder(x, gamma_0)
    if levels is not None:
        return -sum_event(pixels.expected_log_prob(images, gamma_0, levels), mask)
    each = jnp.broadcast_to(0.5 * (math.log(2 * math.pi) + 1.0 + expand(gamma_0, x)), x.shape)
    return sum_event(each, mask)


def to_data(images: Images | Tensor, levels: Levels, mask: ArrayLike | None = None) -> Tensor:
    """Returns x in [-1, 1] of integers (`pixels.encode`); without levels `images` is x itself.

    Of half precision it is x in float32, which a likelihood needs. Padding is 0 in x, whatever it
    was. With `transforms.Coefficients` it is W x instead.
    """
    if not np.shape(images):
        raise ValueError(f"images must be [batch, *event], got one number, {images}.")
    if isinstance(levels, Coefficients):
        levels.unmasked(mask)
        return levels.transform.forward(to_data(images, levels.levels))
    if mask is not None:
        return masks.keep(to_data(masks.keep(images, mask), levels), mask)
    if isinstance(levels, tuple):
        parts = mixed.parts(levels, jnp.asarray(images))
        return mixed.joined(
            levels, [to_data(mixed.integers(of, level), level) for level, of in parts]
        )
    if levels is not None:
        return pixels.encode(images, levels)
    x = jnp.asarray(images)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"levels=None is for continuous data, floats, got {x.dtype}.")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def prior(x: Tensor, gamma_1: ArrayLike, mask: ArrayLike | None = None) -> PerExample:
    """Returns KL(q(z_1|x) || N(0, I)) (VDM eq. 11, first term), [batch] nats, of x in [-1, 1]."""
    x = masks.keep(jnp.asarray(x), mask)
    q = marginal(x, gamma_1)
    return sum_event(q.kl(Gaussian(jnp.zeros_like(x), jnp.ones_like(x))), mask)


def diffusion(
    x: Tensor,
    eps: Tensor,
    t: PerExample,
    denoise: Denoise,
    gamma: Gamma,
    num_steps: int | None = None,
    kind: Kind = "eps",
    reverse_var: ReverseVar = "posterior",
    mask: ArrayLike | None = None,
) -> PerExample:
    """Returns the diffusion loss at times `t`, [batch] nats; E over t ~ U[0, 1] is the term.

    In continuous time (`num_steps=None`) gamma'(t) / 2 ||eps - eps_hat||^2 (VDM eq. 17);
    with T = `num_steps` the time is rounded up to the grid i / T and the loss is
    T / 2 (SNR(s) / SNR(t) - 1) ||eps - eps_hat||^2 (VDM eq. 13 and 14).

    That is T KL(q(z_s|z_t, x) || p(z_s|z_t)) where p has the posterior's variance. If its variance
    is 1 / r times as large, r = (sigma_s^2 / sigma_t^2)^share (`process.reverse`), the KL is
    1/2 sum (r - 1 - log r) + r/2 (SNR(s) / SNR(t) - 1) ||eps - eps_hat||^2. In continuous time r
    is 1 and the first sum, of second order in the step, nothing: no variance makes a difference.

    x and eps are data in [-1, 1] and standard-normal noise, [batch, *event], t times in [0, 1],
    [batch]; denoise, gamma, kind and reverse_var are those of `vdm_jax.VDM`.
    """
    checks.times(t)
    x, eps, t = masks.keep(jnp.asarray(x), mask), jnp.asarray(eps), checks.as_float(t)
    checks.same_shape(x, eps, "x", "eps")
    checks.per_example(t, x)
    timestep.check_event(gamma, x.shape[1:])
    gamma_s, gamma_t, weight = noise_level(t, gamma, num_steps)
    z_t = marginal(x, gamma_t).at(eps)
    prediction, share = split(masks.denoiser(denoise, mask)(z_t, gamma_t), reverse_var)
    square = jnp.square(eps - to_eps(prediction, z_t, gamma_t, kind))
    if num_steps is None or reverse_var == "posterior":
        return 0.5 * sum_event(expand(weight, x) * square, mask)
    log_r = -share * variance_log_ratio(expand(gamma_s, x), expand(gamma_t, x))
    r = jnp.exp(log_r)
    wider = num_steps * excess(jnp.expm1(log_r), r)
    return 0.5 * sum_event(wider + r * expand(weight, x) * square, mask)


def elbo(
    key: Key,
    images: Images | Tensor,
    denoise: Denoise,
    gamma: Gamma,
    levels: Levels = 256,
    num_steps: int | None = None,
    kind: Kind = "eps",
    timesteps: timestep.Method = "antithetic",
    reverse_var: ReverseVar = "posterior",
    mask: ArrayLike | None = None,
) -> ElboTerms:
    """Returns one unbiased sample of the three terms of the bound, for each of a batch of images.

    `images` are integers in [0, levels), [batch, *event], or without levels x itself, floats.
    `timesteps` is "antithetic" (low-discrepancy over the batch) or "uniform" (independent). The
    other arguments are those of `diffusion`.
    """
    eps_0, eps, t = draw(key, np.shape(images), timesteps)
    x = to_data(images, levels, mask)
    at_t = diffusion(x, eps, t, denoise, gamma, num_steps, kind, reverse_var, mask)
    return terms(images, at_t, gamma, levels, eps_0, mask)


def terms(
    images: Images | Tensor,
    at_t: PerExample,
    gamma: Gamma,
    levels: Levels,
    eps_0: Tensor | None = None,
    mask: ArrayLike | None = None,
) -> ElboTerms:
    """Returns the terms of the bound whose diffusion term is `at_t`, [batch] nats.

    Without `eps_0` the reconstruction is its expectation over z_0 (`expected_reconstruction`).
    """
    x = to_data(images, levels, mask)
    gamma_0, gamma_1 = timestep.end_points(gamma, x.dtype)
    if eps_0 is None:
        at_0 = expected_reconstruction(images, gamma_0, levels, mask)
    else:
        at_0 = reconstruction(images, eps_0, gamma_0, levels, mask)
    return ElboTerms(at_0, prior(x, gamma_1, mask), at_t)


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


def bits_per_dim(
    nats: ArrayLike, event_shape: Sequence[int], mask: ArrayLike | None = None
) -> Tensor:
    """Returns bits per dimension of a probability's nats: nats / (dimensions ln 2).

    The dimensions are prod(event_shape); with a mask those of each example that are there.
    """
    return jnp.asarray(nats) / (_dims(event_shape, mask) * math.log(2.0))


def nats_per_dim(
    nats: ArrayLike, event_shape: Sequence[int], mask: ArrayLike | None = None
) -> Tensor:
    """Returns nats per dimension of a density's nats; of an example without any, 0."""
    return jnp.asarray(nats) / _dims(event_shape, mask)


def _dims(event_shape: Sequence[int], mask: ArrayLike | None) -> Tensor | int:
    found = masks.dims(checks.event_shape(event_shape), mask)
    return found if mask is None else jnp.maximum(found, 1)


def sum_event(elementwise: Tensor, mask: ArrayLike | None = None) -> PerExample:
    """Returns the sum over all axes but the first, of what is there."""
    return jnp.sum(masks.keep(elementwise, mask), axis=tuple(range(1, jnp.ndim(elementwise))))


def _sum(parts: Iterable[PerExample]) -> PerExample:
    """Returns the sum of what each kind of feature contributes."""
    return functools.reduce(jnp.add, parts)
