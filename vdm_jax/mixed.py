"""Data whose features are of several kinds: `levels` as a tuple, along the last axis.

(None, None, None, 10) are three continuous features and one integer in [0, 10), as positions and a
charge. Such data are one array of floats; each feature has its own decoder, and their terms add up.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdm_jax import checks
from vdm_jax.transforms import Coefficients
from vdm_jax.types import Tensor

Levels = int | None | tuple[int | None, ...] | Coefficients
"""Number of values of each element, None for continuous ones; or one for each last-axis feature, or
a number and the transform to coefficients that the model is of."""


def kinds(levels: Levels) -> tuple[int | None, ...]:
    """Returns the numbers of levels that there are: of all elements one, or each feature's."""
    levels = levels.levels if isinstance(levels, Coefficients) else levels
    return levels if isinstance(levels, tuple) else (levels,)


def of_images(levels: Levels, number: int) -> Levels:
    """Returns a model's levels as those of images that have `number`, of the same transform."""
    if isinstance(levels, Coefficients):
        return Coefficients(number, levels.transform)
    return number


def parts(levels: tuple[int | None, ...], like: Tensor, *others: Any) -> Iterator[tuple[Any, ...]]:
    """Yields each number of levels, and the features that have it of `like` and of the `others`.

    `like` is [batch, ..., features]; others are None or broadcast to its shape. Raises ValueError
    for another number of features.
    """
    if np.ndim(like) < 2 or len(levels) != np.shape(like)[-1]:
        said = f"levels has {len(levels)} numbers for data of shape {np.shape(like)}"
        raise ValueError(f"{said}; wanted one for each feature, along the last axis.")
    every = [(each, np.shape(each)[-1:] == (len(levels),)) for each in (like, *others)]
    for level, columns in _columns(levels).items():
        yield level, *(each[..., columns] if split else each for each, split in every)


def joined(levels: tuple[int | None, ...], found: Iterable[Tensor]) -> Tensor:
    """Returns [..., features], floats, of what was made of each of the `parts`."""
    columns = np.concatenate(list(_columns(levels).values()))
    whole = jnp.concatenate([jnp.asarray(part, float) for part in found], axis=-1)
    return whole[..., np.argsort(columns)]


def integers(values: Tensor, level: int | None) -> Tensor:
    """Returns a feature's values as integers, if it has levels.

    Raises ValueError for some that are none; where they aren't known these become -1, no level.
    """
    if level is None:
        return values
    known = checks.known(values)
    if known is not None and not np.equal(known, np.rint(known)).all():
        raise ValueError(f"a feature of {level} levels holds numbers that are no integers.")
    whole = jnp.rint(values)
    return jnp.where(whole == values, whole, -1).astype(int)


def _columns(levels: tuple[int | None, ...]) -> dict[int | None, np.ndarray]:
    kinds = dict.fromkeys(levels)
    return {kind: np.flatnonzero([level == kind for level in levels]) for kind in kinds}
