"""Discrete images as points of [-1, 1], the discretised likelihood p(x|z_0), and dequantisation."""

import functools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks
from vdm_jax.distributions import Gaussian
from vdm_jax.process import expand
from vdm_jax.schedule import alpha, sigma
from vdm_jax.types import Images, Key, PerExample, Tensor

Dequantization = Literal["uniform", "truncated_normal"]
MOST_LEVELS = 2**16
DEQUANTIZATIONS: tuple[Dequantization, ...] = get_args(Dequantization)


def encode(images: ArrayLike, levels: int) -> Tensor:
    """Returns the centres 2 (image + 1/2) / levels - 1 of equal bins of [-1, 1], of any shape.

    `images` are integers in [0, levels); the result has the default float dtype.
    """
    _check_levels(levels)
    if jnp.iscomplexobj(images):
        raise ValueError("images must be integers in [0, levels), got complex numbers.")
    return 2.0 * (jnp.asarray(images, float) + 0.5) / levels - 1.0


def level_values(levels: int) -> Tensor:
    """Returns `encode` of 0, 1, ..., levels - 1."""
    _check_levels(levels)
    return encode(jnp.arange(levels), levels)


def _logit(error: Tensor, precision: Tensor) -> Tensor:
    """Returns log N(z_0 / alpha_0; value, 1 / precision), up to a constant (VDM eq. 8)."""
    return -0.5 * precision * jnp.square(error)


def decode_log_probs(z_0_rescaled: Tensor, gamma_0: ArrayLike, levels: int) -> Tensor:
    """Returns log p(x = k|z_0) for every level k: [*shape, levels], in nats (VDM eq. 8).

    `z_0_rescaled` is z_0 / alpha_0 = x + exp(gamma_0 / 2) eps_0. The decoder is the posterior of x
    under q(z_0|x) and equally likely levels, independent between elements.
    """
    z_0_rescaled = jnp.asarray(z_0_rescaled)
    precision = jnp.exp(-expand(gamma_0, z_0_rescaled))[..., None]
    logits = _logit(z_0_rescaled[..., None] - level_values(levels), precision)
    return jax.nn.log_softmax(logits, axis=-1)


def log_prob(images: Images, z_0_rescaled: Tensor, gamma_0: ArrayLike, levels: int) -> Tensor:
    """Returns elementwise log p(x|z_0), in nats: `decode_log_probs` picked at the given integers.

    It is NaN for what is no integer in [0, levels).
    """
    checks.same_shape(images, z_0_rescaled, "images", "z_0_rescaled")
    z_0_rescaled = jnp.asarray(z_0_rescaled)
    precision = jnp.exp(-expand(gamma_0, z_0_rescaled))
    picked = _logit(z_0_rescaled - encode(images, levels), precision)
    log_sum = _log_sum(z_0_rescaled, jnp.broadcast_to(precision, z_0_rescaled.shape), levels)
    return jnp.where(_valid(images, levels), picked - log_sum, jnp.nan)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _log_sum(z: Tensor, precision: Tensor, levels: int) -> Tensor:
    """Returns log sum_k exp(-precision (z - v_k)^2 / 2) over the level values v, elementwise.

    Its derivatives are averages of z - v and (z - v)^2 under the summands' weights: compiled, no
    array over all levels is stored, neither here nor in the gradient.
    """
    largest, weights, _ = _weights(z, precision, levels)
    return largest + jnp.log(jnp.sum(weights, axis=-1))


@_log_sum.defjvp
def _log_sum_jvp(
    levels: int, primals: tuple[Tensor, Tensor], tangents: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    z, precision = primals
    error, square = _averages(z, precision, levels)
    tangent = -precision * error * tangents[0] - 0.5 * square * tangents[1]
    return _log_sum(z, precision, levels), tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _averages(z: Tensor, precision: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Returns averages of z - v and its square under weights exp(-precision (z - v)^2 / 2)."""
    _, weights, error = _weights(z, precision, levels)
    moments = (weights, weights * error, weights * jnp.square(error))
    zero = jnp.zeros((), weights.dtype)
    # One reduction of all three: of three the compiler would store what they share.
    total, first, second = jax.lax.reduce(
        moments, (zero,) * 3, lambda a, b: tuple(map(jnp.add, a, b)), (z.ndim,)
    )
    return first / total, second / total


@_averages.defjvp
def _averages_jvp(
    levels: int, primals: tuple[Tensor, Tensor], tangents: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns the derivatives, which a reduction of several arrays does not have."""

    def plain(z: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
        _, weights, error = _weights(z, precision, levels)
        share = weights / jnp.sum(weights, axis=-1, keepdims=True)
        return jnp.sum(share * error, axis=-1), jnp.sum(share * jnp.square(error), axis=-1)

    _, moved = jax.jvp(plain, primals, tangents)
    return _averages(*primals, levels), moved


def _weights(z: Tensor, precision: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the largest exponent, exp(exponent - largest) and z - v, these [*z.shape, levels].

    The largest is that of the nearest level, known without looking at the others.
    """
    nearest = jnp.clip(jnp.round((z + 1.0) * (0.5 * levels) - 0.5), 0, levels - 1)
    largest = _logit(z - jax.lax.stop_gradient(encode(nearest, levels)), precision)
    error = z[..., None] - level_values(levels)
    return largest, jnp.exp(_logit(error, precision[..., None]) - largest[..., None]), error


def expected_log_prob(images: Images, gamma_0: ArrayLike, levels: int) -> Tensor:
    """Returns elementwise E log p(x|z_0) over z_0 ~ q(z_0|x), in nats: `log_prob` without noise.

    It depends on the level alone, so that `levels` integrals over one normal eps_0 give it for any
    number of images. They are sums over points 1/8 apart, right to 1e-12 at any gamma_0, but for
    the rounding of the dtype. `gamma_0` is a scalar; what is no integer in [0, levels) gives NaN.
    """
    if jnp.shape(gamma_0) != ():
        raise ValueError(f"gamma_0 must be a scalar, got shape {jnp.shape(gamma_0)}.")
    eps_0 = np.arange(-72, 73) / 8.0
    weights = np.exp(-0.5 * eps_0**2)
    every = jnp.arange(levels)
    z_0_rescaled = level_values(levels)[:, None] + jnp.exp(0.5 * jnp.asarray(gamma_0)) * eps_0
    log_probs = log_prob(
        jnp.broadcast_to(every[:, None], z_0_rescaled.shape), z_0_rescaled, gamma_0, levels
    )
    table = log_probs @ jnp.asarray(weights / weights.sum(), log_probs.dtype)
    index = jnp.clip(jnp.asarray(images), 0, levels - 1).astype(int)
    return jnp.where(_valid(images, levels), table[index], jnp.nan)


def decode(z_0_rescaled: Tensor, gamma_0: ArrayLike, levels: int, key: Key | None = None) -> Images:
    """Returns integers in [0, levels): the most likely ones, or with a `key` a draw of p(x|z_0)."""
    log_probs = decode_log_probs(z_0_rescaled, gamma_0, levels)
    if key is None:
        return jnp.argmax(log_probs, axis=-1)
    return jax.random.categorical(key, log_probs)


def dequantize(
    key: Key, images: Images, levels: int, gamma_0: ArrayLike, method: Dequantization = "uniform"
) -> tuple[Tensor, PerExample]:
    """Returns a latent z_0 ~ q(z_0|image) within the image's bin, and log q(z_0|image).

    The bin is |z_0 / alpha_0 - x| < 1 / levels in each element, x = `encode`(image). By Jensen's
    inequality -log P(bin) <= E_q[log q(z_0|image) - log p(z_0)] (Theis et al. 2016).

    * "uniform": z_0 = alpha_0 (x + u), u uniform within the bin;
    * "truncated_normal": z_0 = alpha_0 x + sigma_0 eps, eps standard normal within +-tau,
      tau = alpha_0 / (sigma_0 levels): the noise the network knows, cut off at the bin's edges
      (Zheng et al. 2023).

    `images` are integers in [0, levels), [batch, *event] (others give NaN), and so is z_0; log q is
    [batch], in nats; `gamma_0` is a scalar or [batch].
    """
    checks.choice(method, "method", DEQUANTIZATIONS)
    x, valid = encode(images, levels), _valid(images, levels)
    gamma_0 = expand(jnp.asarray(gamma_0, x.dtype), x)
    if method == "uniform":
        u = jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0) / levels
        # The bin of z_0 has width 2 alpha_0 / levels.
        log_q = jnp.full_like(x, math.log(0.5 * levels)) - 0.5 * jax.nn.log_sigmoid(-gamma_0)
        z_0 = alpha(gamma_0) * (x + u)
    else:
        tau = jnp.exp(-0.5 * gamma_0) / levels
        eps = jax.random.truncated_normal(key, -tau, tau, x.shape, x.dtype)
        z_0 = alpha(gamma_0) * x + sigma(gamma_0) * eps
        noise = Gaussian(jnp.zeros_like(x), jnp.ones_like(x)).log_prob(eps)
        log_q = noise - _log_mass(tau) - 0.5 * jax.nn.log_sigmoid(gamma_0)
    # What is no level has neither.
    log_q = jnp.where(valid, log_q, jnp.nan)
    return jnp.where(valid, z_0, jnp.nan), jnp.sum(log_q, axis=tuple(range(1, x.ndim)))


def _log_mass(tau: Tensor) -> Tensor:
    """Returns log P(|eps| < tau) of a standard normal eps, tau > 0, to full relative accuracy."""
    scaled = tau * 0.5**0.5
    near = scaled < 0.5
    # As erf approaches 1 the digits of its logarithm are those of erfc.
    far = jnp.log1p(-jax.lax.erfc(jnp.where(near, 1.0, scaled)))
    return jnp.where(near, jnp.log(jax.lax.erf(scaled)), far)


def _valid(images: ArrayLike, levels: int) -> Tensor:
    """Returns where each element is an integer in [0, levels)."""
    images = jnp.asarray(images, float)  # a uint8 would be compared with 256 modulo 256
    return (images >= 0) & (images < levels) & (images == jnp.round(images))


def _check_levels(levels: int) -> None:
    checks.count(levels, "levels", most=MOST_LEVELS)
