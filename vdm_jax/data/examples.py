"""Examples from own arrays: x, maybe with a condition and a mask; their checks and fingerprints."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

NAMES = {"x": "images", "condition": "conditioning", "mask": "mask"}
"""What may be given, and what it is called in a batch."""

Examples = dict[str, Any]

_CHUNK = 1 << 12  # rows that are looked at together: arrays may be larger than the memory


def examples(given: Any, what: str) -> Examples:
    """Returns arrays x [n, *event], or a mapping of "x" and others of `NAMES`, as a batch has them.

    Numbers of 64 bits become those of 32 unless JAX computes with 64. Raises ValueError, which
    calls the examples `what`, for other names or lengths, numbers that aren't finite where
    something is there, and for a mask that doesn't fit x or has other values than 0 and 1.
    """
    named = dict(given) if isinstance(given, Mapping) else {"x": given}
    named = {name: value for name, value in named.items() if value is not None}
    if not {"x"} <= named.keys() <= NAMES.keys():
        got = ", ".join(map(str, named)) or "nothing"
        raise ValueError(f"{what} has {got}; wanted x and, if there are any, condition and mask.")
    found = {NAMES[name]: jax.tree.map(_array, value) for name, value in named.items()}
    x, mask = found["images"], found.get("mask")
    for name, leaf in leaves(found).items():
        if leaf.dtype.kind not in "biuf" or leaf.shape[:1] != x.shape[:1] or not leaf.size:
            raise ValueError(
                f"{what}: {name} is {form(leaf)}; wanted numbers, one row for each of the "
                f"{len(x) if x.ndim else 0} examples of x."
            )
    if mask is not None:
        _check_mask(mask, x, what)
    for name, leaf in leaves(found).items():
        if not _where(np.isfinite(leaf), mask if name == "x" else None).all():
            raise ValueError(f"{what}: {name} holds NaN or infinity; wanted finite numbers.")
    return found


def _array(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)  # np.memmap -> a plain view: much cheaper to index
    known = array.dtype.kind in "biuf"
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False) if known else array


def _check_mask(mask: np.ndarray, x: np.ndarray, what: str) -> None:
    sizes = zip(mask.shape, x.shape, strict=False)
    if mask.ndim != x.ndim or any(size not in (1, whole) for size, whole in sizes):
        raise ValueError(
            f"{what}: mask is {form(mask)}, x {form(x)}; wanted as many axes as x, each of its "
            "size or of size 1."
        )
    if (odd := mask[(mask != 0) & (mask != 1)]).size:
        raise ValueError(f"{what}: mask holds {odd[0]}; wanted 1 where x is there, else 0.")


def check_values(of: Examples, event_shape: tuple[int, ...], levels: int | None, what: str) -> None:
    """Raises ValueError unless x is a model's data: floats, or integers in [0, levels)."""
    x, mask = of["images"], of.get("mask")
    if x.shape[1:] != tuple(event_shape):
        raise ValueError(
            f"{what}: x is {form(x)}, but an example of the model has shape {tuple(event_shape)}."
        )
    if (levels is None) != (x.dtype.kind == "f"):
        kinds = "levels=None is for floats", f"levels={levels} for integers"
        raise ValueError(f"{what}: x is {form(x)}; {' and '.join(kinds)}.")
    if levels is not None and not _where((x >= 0) & (x < levels), mask).all():
        raise ValueError(
            f"{what}: x holds {x.min()} to {x.max()}; wanted integers in [0, {levels})."
        )


def _where(good: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Returns whether each number is good or padding."""
    return good if mask is None else good | (mask == 0)


def leaves(of: Examples) -> dict[str, np.ndarray]:
    """Returns each array by the name that it was given, as "x" or "condition/theta"."""
    named = {name: of[key] for name, key in NAMES.items() if key in of}
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(named)
    }


def form(leaf: np.ndarray) -> str:
    """Returns the type and shape of an array in words, as "float32 [1000, 2]"."""
    return f"{leaf.dtype} [{', '.join(map(str, leaf.shape))}]"


def fingerprints(of: Examples) -> dict[str, str]:
    """Returns type, shape and a digest of each array, by its name."""
    found = {}
    for name, leaf in leaves(of).items():
        digest = hashlib.sha256()
        for at in range(0, len(leaf), _CHUNK):
            digest.update(np.ascontiguousarray(leaf[at : at + _CHUNK]).data)
        found[name] = f"{form(leaf)} {digest.hexdigest()[:16]}"
    return found


def check_alike(data: Examples, test: Examples) -> None:
    """Raises ValueError unless both have the same names, with arrays of the same type and shape."""
    ours, theirs = leaves(data), leaves(test)
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = (form(of[name][:1]) if name in of else "absent" for of in (ours, theirs))
        if a != b:
            raise ValueError(f"test: {name} of one example is {b}, but {a} in data.")
