"""`load`: the one door to all data sets."""

import os
from pathlib import Path

import numpy as np

from vdm_jax.data import cache
from vdm_jax.data.arrays import load_arrays
from vdm_jax.data.digits import LEVELS as DIGITS_LEVELS
from vdm_jax.data.digits import load_digits
from vdm_jax.data.errors import DataError, reason
from vdm_jax.data.images import ImageData, validation_split
from vdm_jax.data.tfds_source import LEVELS as PUBLISHED_LEVELS
from vdm_jax.data.tfds_source import load_published

__all__ = ["SOURCES", "DataError", "ImageData", "load", "validation_split"]

SOURCES = ("digits", "arrays", "cifar10", "mnist")
_OWN_LEVELS = {"digits": DIGITS_LEVELS, "cifar10": PUBLISHED_LEVELS, "mnist": PUBLISHED_LEVELS}

_PathLike = str | os.PathLike[str] | None


def load(
    name: str,
    *,
    data_dir: _PathLike = None,
    path: _PathLike = None,
    levels: int = 256,
    manual_dir: _PathLike = None,
) -> ImageData:
    """Returns a data set by name.

    Args:
      name: "digits" (embedded: scikit-learn's 8x8 digits, 17 levels), "arrays" (an .npz file of
        the user's), "cifar10" or "mnist" (downloaded once, or built from `manual_dir`).
      data_dir: where decoded and downloaded data are kept; $VDM_JAX_DATA or ~/.cache/vdm_jax
        where it isn't given. "digits" needs none.
      path: the .npz file; for "arrays" only.
      levels: number of pixel values, 2..256; for "arrays" only, the others have their own.
      manual_dir: where the original archives of "cifar10" and "mnist" lie, for a machine
        without network; `data_dir/manual` where it isn't given.

    Raises:
      DataError: one line, on whatever keeps the data set from being had.
    """
    if name not in SOURCES:
        raise DataError(f"data set {name!r} is unknown; choose one of {', '.join(SOURCES)}")
    _check_levels(name, levels)
    if path and name != "arrays":
        raise DataError(f"path={str(path)!r} is for 'arrays', not for {name!r}; leave it out")
    if name == "digits":
        return load_digits()
    root = Path(data_dir).expanduser() if data_dir else cache.default_data_dir()
    manual = Path(manual_dir).expanduser() if manual_dir else None
    try:
        if name == "arrays":
            return load_arrays(path, int(levels), root)
        return load_published(name, root, manual)
    except OSError as error:
        raise DataError(
            f"{name} can't be kept in data_dir={root}: {reason(error)}; free some space or mend "
            "the permissions there, or choose another data_dir (or $VDM_JAX_DATA)"
        ) from error


def _check_levels(name: str, levels: int) -> None:
    if isinstance(levels, bool) or not isinstance(levels, (int, np.integer)):
        raise DataError(f"levels={levels!r} must be a whole number in 2..256")
    if not 2 <= levels <= 256:
        raise DataError(f"levels={levels} must lie in 2..256, as images are uint8")
    own = _OWN_LEVELS.get(name, levels)
    if levels not in (own, 256):
        raise DataError(f"levels={levels} can't be set for {name!r}, which has {own}; leave it out")
