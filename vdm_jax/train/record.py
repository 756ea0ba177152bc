"""The record saved beside a state: the run's settings, and the form and bits of each leaf.

A record is a JSON object: "settings", "leaves" (path -> "dtype[shape] checksum"), and "sha256" of
the canonical text of both. A record that is whole and describes another model is no damage.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import chex

from vdm_jax.errors import UserError
from vdm_jax.train import checksum


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another run; the message is one line."""


class DamagedError(CheckpointError):
    """A checkpoint with something in it that is not what was saved, or missing."""


def make(settings: Mapping[str, Any], state: Any) -> dict[str, Any]:
    """Returns the record of a state. All processes call it, as `checksum.of_leaves`."""
    return _sealed(settings, _leaves(state))


def _sealed(settings: Mapping[str, Any], leaves: Mapping[str, str]) -> dict[str, Any]:
    body = {"settings": settings, "leaves": leaves}
    return body | {"sha256": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}


def check_intact(record: Any) -> dict[str, Any]:
    """Returns the record. Raises DamagedError, with the reason alone, if it has changed."""
    if not isinstance(record, dict) or not record.keys() & {"leaves", "sha256"}:
        raise DamagedError("it lacks its checksums")
    if record != _sealed(record.get("settings", {}), record.get("leaves", {})):
        raise DamagedError("its record of settings and checksums has changed since it was saved")
    return record


def check_fits(record: Mapping[str, Any], expected: Any, where: Path, below: str = "") -> None:
    """Raises CheckpointError, naming the first leaf that differs, unless `expected` was saved.

    `expected` is a tree of arrays or shapes: the state, or with `below` that part of it.
    """
    leaves = record["leaves"].items()
    have = {n.removeprefix(below): x.split()[0] for n, x in leaves if n.startswith(below)}
    want = {name: form(leaf) for name, leaf in checksum.named_leaves(expected).items()}
    for name in sorted(have.keys() | want.keys()):
        a, b = have.get(name, "absent"), want.get(name, "absent")
        if a != b:
            said = f"the parameter {name} of {where} is {a}, but the configuration calls for {b}"
            raise CheckpointError(f"{said}: they belong to different models.")


def check_same(record: Mapping[str, Any], expected: Any, restored: Any) -> None:
    """Raises unless `restored` has the form of `expected` and the bits saved; for all processes."""
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, expected)
    for name, found in _leaves(restored).items():
        if record["leaves"][name] != found:
            raise DamagedError(f"{name} has other bits than were saved")


def _leaves(state: Any) -> dict[str, str]:
    sums = checksum.of_leaves(state)
    return {name: f"{form(x)} {sums[name]}" for name, x in checksum.named_leaves(state).items()}


def form(leaf: Any) -> str:
    """Returns the type and shape of a leaf, as "float32[3,4]"."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Yields (dotted name, "name: a -> b") for each leaf in which two nested dicts differ."""
    for key in sorted(saved.keys() | now.keys()):
        name = f"{prefix}{key}"
        a, b = saved.get(key, "unset"), now.get(key, "unset")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{name}.")
        elif a != b:
            yield name, f"{name}: {a} -> {b}"


def filled(defaults: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `saved`, and from `defaults` what it lacks, at any depth."""
    both = dict(defaults) | dict(saved)
    for name, value in defaults.items():
        if isinstance(value, Mapping):
            both[name] = filled(value, saved.get(name, {}))
    return both
