"""Discrete images as points of [-1, 1], and the discretised likelihood p(x|z_0)."""

from numbers import Integral

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vdm_jax.process import expand
from vdm_jax.types import Images, Key, Tensor

__all__ = ["decode", "decode_log_probs", "encode", "level_values", "log_prob"]


def encode(images: ArrayLike, levels: int) -> Tensor:
    """Integers in [0, levels) -> the centres 2 (image + 1/2) / levels - 1 of equal bins of [-1, 1].

    Any shape; returns the default float dtype.
    """
    _check_levels(levels)
    return 2.0 * (jnp.asarray(images, float) + 0.5) / levels - 1.0


def level_values(levels: int) -> Tensor:
    """`encode` of 0, 1, ..., levels - 1."""
    _check_levels(levels)
    return encode(jnp.arange(levels), levels)


def _logits(z_0_rescaled: Tensor, values: Tensor, gamma_0: ArrayLike) -> Tensor:
    """log N(z_0 / alpha_0; value, sigma_0^2 / alpha_0^2), up to a constant (VDM eq. 8)."""
    precision = jnp.exp(-expand(gamma_0, z_0_rescaled))
    return -0.5 * precision * jnp.square(z_0_rescaled - values)


def decode_log_probs(z_0_rescaled: Tensor, gamma_0: ArrayLike, levels: int) -> Tensor:
    """log p(x = k|z_0) for every level k: [*shape, levels], in nats (VDM eq. 8).

    `z_0_rescaled` is z_0 / alpha_0 = x + exp(gamma_0 / 2) eps_0. The decoder is the posterior of x
    under q(z_0|x) and equally likely levels, independent between elements.
    """
    gamma_0 = expand(gamma_0, z_0_rescaled)[..., None]
    logits = _logits(z_0_rescaled[..., None], level_values(levels), gamma_0)
    return jax.nn.log_softmax(logits, axis=-1)


def log_prob(images: Images, z_0_rescaled: Tensor, gamma_0: ArrayLike, levels: int) -> Tensor:
    """Elementwise log p(x|z_0) of the given integers, in nats: `decode_log_probs` picked at them.

    The largest logit is that of the nearest level, known without looking at the others: so the
    array over all levels is summed over once and, compiled, never stored (its gradient may be).
    What is no integer in [0, levels) has no probability: the result is NaN there.
    """
    images = jnp.asarray(images, float)  # a uint8 would be compared with 256 modulo 256
    valid = (images >= 0) & (images < levels) & (images == jnp.round(images))
    gamma_0 = expand(gamma_0, z_0_rescaled)
    nearest = jnp.clip(jnp.round((z_0_rescaled + 1.0) * (0.5 * levels) - 0.5), 0, levels - 1)
    largest = jax.lax.stop_gradient(_logits(z_0_rescaled, encode(nearest, levels), gamma_0))
    others = _logits(z_0_rescaled[..., None], level_values(levels), gamma_0[..., None])
    log_sum = largest + jnp.log(jnp.sum(jnp.exp(others - largest[..., None]), axis=-1))
    picked = _logits(z_0_rescaled, encode(images, levels), gamma_0)
    return jnp.where(valid, picked - log_sum, jnp.nan)


def decode(z_0_rescaled: Tensor, gamma_0: ArrayLike, levels: int, key: Key | None = None) -> Images:
    """Integers in [0, levels): the most likely ones, or with a `key` a draw from p(x|z_0)."""
    log_probs = decode_log_probs(z_0_rescaled, gamma_0, levels)
    if key is None:
        return jnp.argmax(log_probs, axis=-1)
    return jax.random.categorical(key, log_probs)


def _check_levels(levels: int) -> None:
    if isinstance(levels, bool) or not isinstance(levels, Integral) or levels < 1:
        raise ValueError(f"levels must be an integer of at least 1, got {levels!r}.")
