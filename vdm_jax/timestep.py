"""Drawing the times at which the diffusion loss is estimated."""

from numbers import Integral
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from vdm_jax.types import Key, PerExample, Tensor

__all__ = ["METHODS", "Method", "antithetic", "draw", "grid", "spread", "uniform"]

Method = Literal["uniform", "antithetic"]
METHODS: tuple[Method, ...] = get_args(Method)


def uniform(key: Key, batch_size: int) -> PerExample:
    """Independent t ~ U[0, 1), of shape [batch_size]."""
    return jax.random.uniform(key, (batch_size,))


def antithetic(key: Key, batch_size: int) -> PerExample:
    """Low-discrepancy t_i = (u + i / batch_size) mod 1, with one u ~ U[0, 1) (VDM appendix I.1).

    Each t_i is uniform by itself, so that every per-example loss keeps its expectation, and each
    interval of length 1 / batch_size holds one of them, so that their mean varies less.
    """
    u = jax.random.uniform(key)
    return jnp.mod(u + jnp.arange(batch_size, dtype=u.dtype) / batch_size, 1.0)


def spread(
    u: Tensor, index: Int[Array, " batch"], repeat: ArrayLike, repeats: ArrayLike
) -> PerExample:
    """Times for an evaluation: t = (u + index / golden ratio + repeat / repeats) mod 1, [batch].

    With u ~ U[0, 1) each t is uniform. The `repeats` times of one image are equally spaced, and
    those of any run of consecutive images are evenly spread, whatever the batches are: a padded
    last batch would break the strata of `antithetic`.
    """
    # index / golden ratio mod 1 in integers: exact for any index, as floats are not.
    turns = (index.astype(jnp.uint32) * jnp.uint32(2654435769)).astype(u.dtype) / 2.0**32
    return jnp.mod(u + turns + repeat / repeats, 1.0)


def draw(key: Key, batch_size: int, method: Method) -> PerExample:
    """Times in [0, 1) by the named method. Raises ValueError for an unknown name."""
    if method == "uniform":
        return uniform(key, batch_size)
    if method == "antithetic":
        return antithetic(key, batch_size)
    raise ValueError(f"timesteps must be one of {', '.join(METHODS)}, got {method!r}.")


def grid(t: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """The step (s, t) of a grid of `num_steps` that a time in [0, 1] falls into.

    t becomes i / T and s = (i - 1) / T with i = ceil(t T), at least 1: a draw of exactly 0, which
    has probability 2^-23 in float32, belongs to the first step and gives no negative s.
    """
    check_num_steps(num_steps)
    t = jnp.asarray(t, jnp.result_type(t, float))
    u = t * num_steps
    nearest = jnp.rint(u)
    # A t that is i / T up to rounding belongs to step i, though t T may come out just above i.
    on_grid = jnp.abs(u - nearest) <= 4.0 * jnp.finfo(u.dtype).eps * jnp.maximum(u, 1.0)
    i = jnp.clip(jnp.where(on_grid, nearest, jnp.ceil(u)), 1, num_steps)
    return (i - 1.0) / num_steps, i / num_steps


def check_num_steps(num_steps: int) -> None:
    """Raise ValueError unless `num_steps` is an integer of at least 1."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, Integral) or num_steps < 1:
        raise ValueError(
            f"num_steps must be an integer of at least 1, got {num_steps!r} "
            "(continuous time is num_steps=None)."
        )
