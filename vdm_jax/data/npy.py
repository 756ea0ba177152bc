"""Arrays of .npy files and .npz members: the one place that reads their headers."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from vdm_jax.errors import reason


def mapped(path: Path) -> np.ndarray:
    """Returns the array of an .npy file, memory-mapped. Raises ValueError if it can't be read."""
    try:
        return np.lib.format.open_memmap(os.fspath(path), mode="r")
    except Exception as error:  # numpy raises many kinds for damaged headers
        raise ValueError(reason(error)) from error


def members(
    file: Path | IO[bytes], wanted: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns those arrays of an .npz that are `wanted`, and the names of all that it has.

    Raises ValueError, which names the array, if one can't be read.
    """
    found, what = dict[str, np.ndarray](), "it"
    try:
        with zipfile.ZipFile(file) as archive:
            there = {name.removesuffix(".npy"): name for name in archive.namelist()}
            for key in wanted:
                if key in there:
                    what = f"array {key!r}"
                    with archive.open(there[key]) as member:
                        found[key] = np.lib.format.read_array(member)
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        raise ValueError(f"{what} can't be read ({reason(error)})") from error
    return found, list(there)
