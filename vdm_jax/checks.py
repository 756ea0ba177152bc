"""Checks of arguments that would give a wrong number, where their values are known.

Inside jit, vmap or grad values are not known, and nothing is checked.
"""

from collections.abc import Sequence
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax.types import Tensor


def known(value: ArrayLike) -> np.ndarray | None:
    """Returns the value as a NumPy array, or None inside jit, vmap or grad."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value)


def as_float(values: ArrayLike) -> Tensor:
    """Returns the array as floats: of its own type if that is one, else of the default."""
    values = jnp.asarray(values)
    return values.astype(jnp.result_type(values, float))


def times(t: ArrayLike) -> None:
    """Raises ValueError for times out of [0, 1]."""
    values = known(t)
    if values is None:
        return
    bad = ~((values >= 0.0) & (values <= 1.0))
    if bad.any():
        raise ValueError(f"t must lie in [0, 1], got {values[bad].flat[0]}.")


def per_example(t: Tensor, x: Tensor) -> None:
    """Raises ValueError unless there is one time for each example of `x`."""
    if jnp.shape(t) != x.shape[:1]:
        got = jnp.shape(t)
        raise ValueError(f"t must be [{x.shape[0]}], one time per example, got shape {got}.")


def order(gamma_s: ArrayLike, gamma_t: ArrayLike) -> None:
    """Raises ValueError where gamma_s is above gamma_t."""
    s, t = known(gamma_s), known(gamma_t)
    if s is not None and t is not None and not np.all(s <= t):
        said = "gamma_s must not be above gamma_t (s < t, and gamma grows with time)"
        raise ValueError(f"{said}, got gamma_s = {s.ravel()} and gamma_t = {t.ravel()}.")


def count(
    value: object, name: str, least: int = 1, most: int | None = None, hint: str = ""
) -> None:
    """Raises ValueError unless `value` is an integer of at least `least`, and at most `most`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least:  # type: ignore[operator]
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}{hint}.")
    if most is not None and value > most:  # type: ignore[operator]
        raise ValueError(f"{name} must be at most {most}, got {value!r}.")


def choice(value: object, name: str, names: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `names`."""
    if value not in names:
        raise ValueError(f"{name} must be one of {', '.join(names)}, got {value!r}.")


def same_shape(one: ArrayLike, other: ArrayLike, name: str, other_name: str) -> None:
    """Raises ValueError where two arrays differ in shape."""
    if np.shape(one) != np.shape(other):
        other_name = f"{other_name} {np.shape(other)}"
        raise ValueError(f"{name} {np.shape(one)} and {other_name} differ in shape.")


def shape(sizes: Sequence[int], name: str = "shape", least: int = 0) -> tuple[int, ...]:
    """Returns the shape as a tuple. Raises ValueError unless it is one of sizes from `least` on."""
    if not isinstance(sizes, Sequence) or not len(sizes):
        raise ValueError(f"{name} must be a tuple of at least one size, got {sizes!r}.")
    for size in sizes:
        count(size, f"each size of {name}", least=least)
    return tuple(sizes)


def event_shape(sizes: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of one example as a tuple; () is that of a single number."""
    return () if sizes == () else shape(sizes, "event_shape", least=1)
