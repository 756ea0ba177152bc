"""Masks: examples of which some elements are padding, as sets of different sizes in one array.

A mask is 1 where an element is there and 0 where it is padding; it has the axes of the data,
[batch, *event], each whole or of size 1. What is padding is put to 0 before anything sees it, and
again in what a network returns, so it changes no value, whatever it holds, NaN included.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks
from vdm_jax.types import Denoise, PerExample, Tensor


def keep(values: Tensor, mask: ArrayLike | None) -> Tensor:
    """Returns the values [batch, *event], 0 where the mask is 0; without a mask as they are.

    Raises ValueError for a mask of another shape, or, where they are known, of other values.
    """
    if mask is None:
        return values
    check(mask, np.shape(values))
    return jnp.where(jnp.asarray(mask) != 0, values, jnp.zeros((), jnp.asarray(values).dtype))


def check(mask: ArrayLike, wanted: tuple[int, ...], name: str = "mask") -> None:
    """Raises ValueError, by `name`, unless the mask is one for data of the shape `wanted`.

    Its values are looked at where they are known.
    """
    shape = np.shape(mask)
    if len(shape) != len(wanted) or not all(np.isin(shape, 1) | np.equal(shape, wanted)):
        axes = "the same axes, each whole or of size 1"
        raise ValueError(f"{name} has shape {shape} for data of {wanted}; wanted {axes}.")
    known = checks.known(mask)
    if known is not None and known.dtype != bool and (odd := known[~np.isin(known, (0, 1))]).size:
        raise ValueError(f"{name} must hold 1 (there) and 0 (padding), and holds {odd[0]}.")


def denoiser(denoise: Denoise, mask: ArrayLike | None) -> Denoise:
    """Returns the network that sees 0 in the padding, and whose outputs are 0 there."""
    if mask is None:
        return denoise

    def kept(z_t: Tensor, gamma_t: PerExample) -> Tensor | tuple[Tensor, ...]:
        found = denoise(keep(z_t, mask), gamma_t)
        if isinstance(found, tuple):
            return tuple(keep(each, mask) for each in found)
        return keep(found, mask)

    return kept


def dims(event_shape: Sequence[int], mask: ArrayLike | None) -> Tensor | int:
    """Returns the number of elements of an example: of each, [batch], with a mask, those there."""
    whole = math.prod(event_shape)
    if mask is None:
        return whole
    mask = jnp.asarray(mask)
    check(mask, (*mask.shape[:1], *event_shape))
    repeated = whole // math.prod(mask.shape[1:])  # of the mask's axes of size 1
    return repeated * jnp.sum(mask != 0, axis=tuple(range(1, mask.ndim)))
