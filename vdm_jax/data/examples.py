"""Examples from own arrays: x, maybe with a condition and a mask; their checks and fingerprints."""

import hashlib
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

import jax
import numpy as np

from vdm_jax import masks, mixed

NAMES = {"x": "images", "condition": "conditioning", "mask": "mask"}
"""What may be given, and what it is called in a batch."""

Examples = dict[str, Any]


def examples(given: Any, what: str) -> Examples:
    """Returns arrays x [n, *event], or a mapping of "x" and others of `NAMES`, as a batch has them.

    Padding becomes 0, and numbers of 64 bits become those of 32 unless JAX computes with 64. Raises
    ValueError, which calls the examples `what`, for other names or lengths, numbers that aren't
    finite or need 64 bits, and a mask that doesn't fit x or has other values than 0 and 1.
    """
    named = dict(given) if isinstance(given, Mapping) else {"x": given}
    named = {name: of for name, of in named.items() if of is not None}
    named |= {name: np.asarray(named[name]) for name in ("x", "mask") if name in named}
    named = jax.tree.map(lambda leaf: _array(leaf, what), named)
    wanted = "x and, if there are any, condition and mask"
    _require({"x"} <= named.keys() <= NAMES.keys(), f"{what} has {[*named]}; wanted {wanted}.")
    x, mask = named["x"], named.get("mask")
    for name, leaf in _leaves(named):
        rows = leaf.dtype.kind in "biuf" and leaf.size and leaf.shape[:1] == x.shape[:1]
        wanted = "numbers, a row for each example of x"
        _require(rows, f"{what}: {name} is {form(leaf)}; wanted {wanted}.")
    if mask is not None:
        masks.check(mask, x.shape, f"{what}: mask")
        named["x"] = np.where(mask == 0, np.zeros((), x.dtype), x)
    for name, leaf in _leaves(named):
        _require(np.isfinite(leaf).all(), f"{what}: {name} holds NaN or infinity.")
    return {NAMES[name]: value for name, value in named.items()}


def _require(good: Any, said: str) -> None:
    if not good:
        raise ValueError(said)


def _array(leaf: Any, what: str) -> np.ndarray:
    array = np.asarray(leaf)  # np.memmap -> a plain view: much cheaper to index
    numbers = array.dtype.kind in "biuf"
    dtype = jax.dtypes.canonicalize_dtype(array.dtype) if numbers else array.dtype
    with np.errstate(over="ignore"):
        found = array.astype(dtype, copy=False)
    same = found is array or array.dtype.kind == "f" or np.array_equal(found, array)
    _require(same, f"{what}: {form(array)} holds integers that {dtype} can't; wanted smaller ones.")
    return found


def check_values(of: Examples, event_shape: tuple[int, ...], levels: Any, what: str) -> None:
    """Raises ValueError unless x is of the model's event: integers in [0, levels), or floats.

    Features of several kinds, `levels` as a tuple, are floats: whole ones where there are levels.
    """
    x, shape = of["images"], tuple(event_shape)
    levels = levels if isinstance(levels, tuple) else mixed.kinds(levels)[0]
    _require(x.shape[1:] == shape, f"{what}: x is {form(x)}, the model's event {shape}.")
    fits = isinstance(levels, Integral) == (x.dtype.kind in "iu")
    wanted = "integers for a number of levels, else floats"
    _require(fits, f"{what}: x is {form(x)}, levels={levels}; wanted {wanted}.")
    features = zip(range(x.shape[-1]), levels, strict=False) if isinstance(levels, tuple) else ()
    parts = [(f"feature {i} of x", x[..., i], level) for i, level in features]
    for name, part, level in parts or [("x", x, levels)]:
        if level is not None:  # the padding is 0
            odd = part[(part < 0) | (part >= level) | (part % 1 != 0)]
            wanted = f"integers in [0, {level})"
            _require(not odd.size, f"{what}: {name} holds {odd[:1]}; wanted {wanted}.")


def check_alike(data: Examples, test: Examples) -> None:
    """Raises ValueError unless both have the same names, with arrays of the same type and shape."""
    ours, theirs = (jax.tree.map(lambda leaf: form(leaf[:1]), of) for of in (data, test))
    _require(ours == theirs, f"an example of test is {theirs}, but one of data {ours}.")


def fingerprints(of: Examples) -> dict[str, str]:
    """Returns type, shape and a digest of each array, by its name."""
    bits = {name: np.ascontiguousarray(leaf) for name, leaf in _leaves(of)}
    digests = {name: hashlib.sha256(leaf.data).hexdigest()[:16] for name, leaf in bits.items()}
    return {name: f"{form(leaf)} {digests[name]}" for name, leaf in bits.items()}


def form(leaf: np.ndarray) -> str:
    """Returns the type and shape of an array in words, as "float32 [1000, 2]"."""
    return f"{leaf.dtype} {[*leaf.shape]}"


def _leaves(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name of each array, as "condition/theta", and the array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf
