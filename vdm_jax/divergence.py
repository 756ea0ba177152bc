"""The trace of a Jacobian, by forward derivatives alone: exactly, or without bias from few.

`tangent` is the derivative J of a map from [batch, *event] to itself, as `jax.linearize` gives it:
direction -> J direction. J is block-diagonal, a map of each example on its own.
"""

import math
from collections.abc import Callable
from numbers import Integral
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from vdm_jax.types import Key, PerExample, Tensor

__all__ = ["PROBES", "TRACES", "Probes", "Trace", "check", "draw", "exact", "hutchinson"]

Trace = Literal["exact", "hutchinson"]
TRACES: tuple[Trace, ...] = get_args(Trace)

Probes = Literal["rademacher", "gaussian"]
PROBES: tuple[Probes, ...] = get_args(Probes)

_COLUMNS = 64  # of the Jacobian computed at once by `exact`: bounds its memory


def exact(tangent: Callable[[Tensor], Tensor], like: Tensor) -> PerExample:
    """tr J of each example, [batch], from every column of J; `like` has the shape of a direction.

    As many derivatives as an event has elements.
    """
    batch, dims = like.shape[0], math.prod(like.shape[1:])

    def diagonal(i: Tensor) -> PerExample:
        direction = jnp.zeros(dims, like.dtype).at[i].set(1.0).reshape(like.shape[1:])
        return tangent(jnp.broadcast_to(direction, like.shape)).reshape(batch, dims)[:, i]

    return jnp.sum(jax.lax.map(diagonal, jnp.arange(dims), batch_size=min(dims, _COLUMNS)), axis=0)


def hutchinson(tangent: Callable[[Tensor], Tensor], noise: Tensor) -> PerExample:
    """The mean over the probes of noise^T J noise, [batch]: unbiased for tr J (Hutchinson 1990).

    noise [num_probes, batch, *event] has mean 0 and covariance I, as of `draw`. For a symmetric J
    the variance of one probe is 2 sum_ij J_ij^2 if gaussian; rademacher leaves out i = j.
    """
    products = noise * jax.vmap(tangent)(noise)
    return jnp.mean(jnp.sum(products, axis=tuple(range(2, noise.ndim))), axis=0)


def draw(key: Key, like: Tensor, probes: Probes, num_probes: int) -> Tensor:
    """Independent probes [num_probes, *shape of like] of mean 0 and covariance I."""
    shape = (num_probes, *like.shape)
    if probes == "gaussian":
        return jax.random.normal(key, shape, like.dtype)
    return jax.random.rademacher(key, shape, like.dtype)


def check(trace: Trace, key: Key | None, probes: Probes, num_probes: int) -> None:
    """Raise ValueError for an unknown name, no probes, or no key to draw them with."""
    if trace not in TRACES:
        raise ValueError(f"trace must be one of {', '.join(TRACES)}, got {trace!r}.")
    if probes not in PROBES:
        raise ValueError(f"probes must be one of {', '.join(PROBES)}, got {probes!r}.")
    if isinstance(num_probes, bool) or not isinstance(num_probes, Integral) or num_probes < 1:
        raise ValueError(f"num_probes must be an integer of at least 1, got {num_probes!r}.")
    if trace == "hutchinson" and key is None:
        raise ValueError("trace='hutchinson' draws probes: give it a key, got key=None.")
