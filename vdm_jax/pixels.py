"""Discrete images as points of [-1, 1], the discretised likelihood p(x|z_0), and dequantisation."""

import functools
import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks
from vdm_jax.distributions import Gaussian
from vdm_jax.process import expand
from vdm_jax.schedule import alpha, sigma
from vdm_jax.types import Images, Key, Tensor

Dequantization = Literal["uniform", "truncated_normal"]
MOST_LEVELS = 2**16
DEQUANTIZATIONS: tuple[Dequantization, ...] = get_args(Dequantization)


def encode(images: ArrayLike, levels: int) -> Tensor:
    """Returns the centres 2 (image + 1/2) / levels - 1 of equal bins of [-1, 1], of any shape.

    `images` are integers in [0, levels); the result has the default float dtype. Raises ValueError
    for an array of any other type.
    """
    checks.count(levels, "levels", most=MOST_LEVELS)
    return _centre(_integers(images), levels)


def level_values(levels: int) -> Tensor:
    """Returns `encode` of 0, 1, ..., levels - 1."""
    checks.count(levels, "levels", most=MOST_LEVELS)
    return encode(jnp.arange(levels), levels)


def _log_ratio(error: Tensor, apart: Tensor, precision: Tensor) -> Tensor:
    """Returns log N(z; v, 1 / precision) / N(z; w, 1 / precision), error = z - w, apart = w - v.

    The difference of the squares as a product: it is nothing for v = w, however z was rounded.
    """
    return -0.5 * precision * apart * (2.0 * error + apart)


def _precision(gamma_0: ArrayLike, like: Tensor) -> Tensor:
    """Returns exp(-gamma_0), finite in float32: beyond 80 no bit of the probabilities changes."""
    return jnp.exp(jnp.minimum(-expand(gamma_0, like), 80.0))


def _nearest(place: Tensor, levels: int) -> Tensor:
    """Returns the level nearest to a place among the levels, 0 being that of level 0."""
    return jax.lax.stop_gradient(jnp.clip(jnp.round(place), 0, levels - 1))


def _apart(nearest: Tensor, levels: int) -> Tensor:
    """Returns the value of the nearest level less those of all, [*shape, levels]."""
    return (nearest[..., None] - jnp.arange(levels)) * (2.0 / levels)


def decode_log_probs(z_0_rescaled: Tensor, gamma_0: ArrayLike, levels: int) -> Tensor:
    """Returns log p(x = k|z_0) for every level k: [*shape, levels], in nats (VDM eq. 8).

    `z_0_rescaled` is z_0 / alpha_0 = x + exp(gamma_0 / 2) eps_0. The decoder is the posterior of x
    under q(z_0|x) and equally likely levels, independent between elements.
    """
    checks.count(levels, "levels", most=MOST_LEVELS)
    z = jnp.asarray(z_0_rescaled)
    nearest = _nearest((z + 1.0) * (0.5 * levels) - 0.5, levels)
    precision = _precision(gamma_0, z)[..., None]
    error = (z - _centre(nearest, levels))[..., None]
    return jax.nn.log_softmax(_log_ratio(error, _apart(nearest, levels), precision), axis=-1)


def log_prob(images: Images, z_0_rescaled: Tensor, gamma_0: ArrayLike, levels: int) -> Tensor:
    """Returns elementwise log p(x|z_0), in nats: `decode_log_probs` picked at the given integers.

    It is NaN for integers outside [0, levels).
    """
    checks.same_shape(images, z_0_rescaled, "images", "z_0_rescaled")
    return log_prob_of_error(images, z_0_rescaled - encode(images, levels), gamma_0, levels)


def log_prob_of_error(images: Images, error: Tensor, gamma_0: ArrayLike, levels: int) -> Tensor:
    """Returns `log_prob` at z_0 / alpha_0 = x + error, x = `encode`(images).

    A small error keeps the digits that it would lose beside x, and is the same number throughout,
    where a compiler may round the sum in two ways.
    """
    valid = _valid(images, levels)
    level = jnp.where(valid, jnp.asarray(images, error.dtype), 0.0)
    nearest = _nearest(level + error * (0.5 * levels), levels)
    apart = (nearest - level) * (2.0 / levels)
    precision = jnp.broadcast_to(_precision(gamma_0, error), error.shape)
    log_sum = _log_sum(error - apart, precision, nearest, levels)
    picked = _log_ratio(error - apart, apart, precision)
    return jnp.where(valid, picked - log_sum, jnp.nan)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _log_sum(error: Tensor, precision: Tensor, nearest: Tensor, levels: int) -> Tensor:
    """Returns the log of the sum over the levels of exp(`_log_ratio`) to the nearest, elementwise.

    Its derivatives are averages under the summands' weights: compiled, no array over all levels is
    stored, neither here nor in the gradient.
    """
    weights, _ = _weights(error, precision, nearest, levels)
    return jnp.log1p(jnp.sum(weights, axis=-1))


@_log_sum.defjvp
def _log_sum_jvp(
    levels: int, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    apart, square = _averages(*primals, levels)
    tangent = -primals[1] * apart * tangents[0] - 0.5 * square * tangents[1]
    return _log_sum(*primals, levels), tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _averages(
    error: Tensor, precision: Tensor, nearest: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    """Returns averages of apart and of apart (2 error + apart) under the weights of `_log_sum`."""
    weights, apart = _weights(error, precision, nearest, levels)
    moments = (weights, weights * apart, weights * apart * (2.0 * error[..., None] + apart))
    zero = jnp.zeros((), weights.dtype)
    # One reduction of all three: of three the compiler would store what they share.
    rest, first, second = jax.lax.reduce(
        moments, (zero,) * 3, lambda a, b: tuple(map(jnp.add, a, b)), (error.ndim,)
    )
    return first / (1.0 + rest), second / (1.0 + rest)


@_averages.defjvp
def _averages_jvp(
    levels: int, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns the derivatives, which a reduction of several arrays does not have."""

    def plain(error: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
        weights, apart = _weights(error, precision, primals[2], levels)
        share = weights / (1.0 + jnp.sum(weights, axis=-1, keepdims=True))
        square = apart * (2.0 * error[..., None] + apart)
        return jnp.sum(share * apart, axis=-1), jnp.sum(share * square, axis=-1)

    _, moved = jax.jvp(plain, primals[:2], tangents[:2])
    return _averages(*primals, levels), moved


def _weights(
    error: Tensor, precision: Tensor, nearest: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    """Returns exp(`_log_ratio`) to the nearest, 0 in place of its own 1, and `_apart`."""
    apart = _apart(nearest, levels)
    weights = jnp.exp(_log_ratio(error[..., None], apart, precision[..., None]))
    return jnp.where(apart == 0.0, 0.0, weights), apart


def expected_log_prob(images: Images, gamma_0: ArrayLike, levels: int) -> Tensor:
    """Returns elementwise E log p(x|z_0) over z_0 ~ q(z_0|x), in nats: `log_prob` without noise.

    It depends on the level alone, so that `levels` integrals over one normal eps_0 give it for any
    number of images. They are sums over points 1/8 apart, right to 1e-12 at any gamma_0, but for
    the rounding of the dtype. `gamma_0` is a scalar, [batch] or [batch, *event], any axis of it 1;
    integers outside [0, levels) give NaN.
    """
    index = jnp.clip(jnp.asarray(images).astype(int), 0, levels - 1)
    gamma_0 = expand(jnp.asarray(gamma_0, float), index, "gamma_0")
    eps_0 = np.arange(-72, 73) / 8.0
    weights = np.exp(-0.5 * eps_0**2)

    def table(gamma_0: Tensor) -> Tensor:
        every = jnp.broadcast_to(jnp.arange(levels)[:, None], (levels, len(eps_0)))
        error = jnp.broadcast_to(jnp.exp(0.5 * gamma_0) * eps_0, every.shape)
        log_probs = log_prob_of_error(every, error, gamma_0, levels)
        return log_probs @ jnp.asarray(weights / weights.sum(), log_probs.dtype)

    own = [axis for axis, size in enumerate(gamma_0.shape) if size > 1]
    first = list(range(len(own)))
    rows = jnp.moveaxis(index, own, first)
    found = _of_each(table, gamma_0.ravel(), rows.reshape(gamma_0.size, -1)).reshape(rows.shape)
    return jnp.where(_valid(images, levels), jnp.moveaxis(found, first, own), jnp.nan)


def _of_each(table: Callable[[Tensor], Tensor], values: Tensor, index: Tensor) -> Tensor:
    """Returns table(value) [size] at its row of `index` [n, k] for each of `values` [n].

    If all values are equal, it is one table. Its derivatives, of any order, are those of each table
    by its own value.
    """

    @jax.custom_jvp
    def each(values: Tensor, index: Tensor) -> Tensor:
        def one() -> Tensor:
            return table(values[0])[index]

        def all_of_them() -> Tensor:
            return jax.lax.map(lambda of: table(of[0])[of[1]], (values, index))

        return jax.lax.cond(jnp.all(values == values[0]), one, all_of_them)

    @each.defjvp
    def _(primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        def slope(value: Tensor) -> Tensor:
            return jax.jvp(table, (value,), (jnp.ones_like(value),))[1]

        return each(*primals), tangents[0][:, None] * _of_each(slope, *primals)

    return each(values, index)


def decode(z_0_rescaled: Tensor, gamma_0: ArrayLike, levels: int, key: Key | None = None) -> Images:
    """Returns integers in [0, levels): the most likely ones, or with a `key` a draw of p(x|z_0).

    Where z_0 is not a number they are -1.
    """
    log_probs = decode_log_probs(z_0_rescaled, gamma_0, levels)
    if key is None:
        found = jnp.argmax(log_probs, axis=-1)
    else:
        found = jax.random.categorical(key, log_probs)
    return jnp.where(jnp.any(jnp.isnan(log_probs), axis=-1), -1, found)


def dequantize(
    key: Key, images: Images, levels: int, gamma_0: ArrayLike, method: Dequantization = "uniform"
) -> tuple[Tensor, Tensor]:
    """Returns a latent z_0 ~ q(z_0|image) within the image's bin, and log q(z_0|image) elementwise.

    The bin is |z_0 / alpha_0 - x| < 1 / levels in each element, x = `encode`(image). By Jensen's
    inequality -log P(bin) <= E_q[log q(z_0|image) - log p(z_0)] (Theis et al. 2016).

    * "uniform": z_0 = alpha_0 (x + u), u uniform within the bin;
    * "truncated_normal": z_0 = alpha_0 x + sigma_0 eps, eps standard normal within +-tau,
      tau = alpha_0 / (sigma_0 levels): the noise the network knows, cut off at the bin's edges
      (Zheng et al. 2023).

    `images` are integers in [0, levels), [batch, *event] (others give NaN), and so are z_0 and
    log q, in nats; `gamma_0` is a scalar, [batch] or [batch, *event], any axis of it 1.
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
    return jnp.where(valid, z_0, jnp.nan), log_q


def _log_mass(tau: Tensor) -> Tensor:
    """Returns log P(|eps| < tau) of a standard normal eps, tau > 0, to full relative accuracy."""
    scaled = tau * 0.5**0.5
    near = scaled < 0.5
    # As erf approaches 1 the digits of its logarithm are those of erfc.
    far = jnp.log1p(-jax.lax.erfc(jnp.where(near, 1.0, scaled)))
    return jnp.where(near, jnp.log(jax.lax.erf(scaled)), far)


def _valid(images: ArrayLike, levels: int) -> Tensor:
    """Returns where each element is in [0, levels), of an array of integers."""
    images = _integers(images)
    return (images >= 0) & (images < levels)


def _integers(images: ArrayLike) -> Tensor:
    """Returns the levels as floats. Raises ValueError for an array that isn't one of integers."""
    dtype = jnp.asarray(images).dtype
    if jnp.issubdtype(dtype, jnp.inexact):
        hint = "give integers, or levels=None for continuous data"
        raise ValueError(f"images must be integers in [0, levels), got {dtype}: {hint}.")
    return jnp.asarray(images, float)  # a uint8 would be compared with 256 modulo 256


def _centre(level: Tensor, levels: int) -> Tensor:
    """Returns the value of a level, given as a float."""
    return 2.0 * (level + 0.5) / levels - 1.0
