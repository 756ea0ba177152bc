"""The file of a published checkpoint: a Flax msgpack, read as what anyone may have written."""

from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import msgpack
import numpy as np
from flax import serialization

_MOST = 10_000  # entries of a list or dict: its place is taken before they are read


def read(file: Path) -> dict[str, Any]:
    """Returns its step, an int, and its other parts as they are; ema_params is a dict.

    Raises ValueError, in one line that names the file, for whatever isn't a published checkpoint.
    It takes memory for the file's content twice, whatever the file declares.
    """
    wanted = "a published checkpoint (a Flax msgpack of step, params, ema_params, opt_state)"
    try:
        content = file.read_bytes()
        _check_sizes(content)
        tree = serialization.msgpack_restore(content)
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}.") from error
    except Exception as error:  # msgpack raises its own kinds, ValueError, UnicodeDecodeError, ...
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{file} is damaged, cut short or not {wanted}: {said}") from error
    if not isinstance(tree, dict) or not {"step", "ema_params"} <= set(tree):
        found = ", ".join(ascii(key) for key in tree) if isinstance(tree, dict) else None
        kind = f"it holds {found[:200] or 'nothing'}" if found is not None else type(tree).__name__
        raise ValueError(f"{file} is not {wanted}: {kind}.")
    step = tree["step"]
    if isinstance(step, np.ndarray) and step.shape == ():
        step = step[()]
    said = " ".join(ascii(step).split())
    if not isinstance(step, Integral) or isinstance(step, bool) or step < 0:
        raise ValueError(f"{file} is not {wanted}: its step is no count but {said[:100]}.")
    if not isinstance(tree["ema_params"], dict):
        kind = type(tree["ema_params"]).__name__
        raise ValueError(f"{file} is not {wanted}: its ema_params are no dict but {kind}.")
    return {**tree, "step": int(step)}


def check_params(params: Mapping[Any, Any], expected: Mapping[str, Any], file: Path) -> None:
    """Compares names, shapes, dtypes and values with what the configuration calls for.

    Raises ValueError that names the first leaf, by name, that isn't as expected.
    """
    found, wanted = leaves(params), leaves(expected)
    for path in [path for path, leaf in wanted.items() if leaf == {}]:  # a schedule without any
        del wanted[path]
        if isinstance(found.get(path), Mapping):
            del found[path]
    for path in sorted(found.keys() | wanted.keys(), key=lambda path: list(map(ascii, path))):
        name = "/".join(key if isinstance(key, str) else ascii(key) for key in path)
        name = name[:200] if name.isprintable() else ascii(name)[:200]
        have, want = (_form(tree.get(path)) for tree in (found, wanted))
        if have != want:
            there = f"{file} has {have} for the parameter {name}"
            raise ValueError(f"{there}, but the configuration calls for {want}.")
        if not np.isfinite(found[path]).all():
            raise ValueError(f"the parameter {name} of {file} is not finite.")


def _form(leaf: Any) -> str:
    if isinstance(leaf, np.ndarray | jax.ShapeDtypeStruct):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return "nothing" if leaf is None else type(leaf).__name__


def leaves(tree: Mapping[Any, Any]) -> dict[tuple[Any, ...], Any]:
    """Returns each leaf by its keys, of any kind; an empty dict is a leaf, and so is a list.

    Not by recursion: a file may nest deeper than Python calls itself.
    """
    found: dict[tuple[Any, ...], Any] = {}
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping) and (value or not path):
            waiting += [((*path, key), each) for key, each in value.items()]
        else:
            found[path] = value
    return found


def _check_sizes(content: bytes) -> None:
    """Parses and keeps nothing: so what Flax then parses declares no more than there is."""

    def small(code: int, data: bytes) -> None:
        if code in (1, 2, 3):  # Flax's arrays, complex numbers and scalars
            msgpack.unpackb(data, raw=True, max_array_len=100, max_map_len=100)

    msgpack.unpackb(
        content, ext_hook=small, strict_map_key=False, max_array_len=_MOST, max_map_len=_MOST
    )
