"""What is saved beside a state: the run's settings, and what each leaf of the state was.

A record is a JSON object: "settings", "leaves" (path -> "dtype[shape] checksum"), and "sha256" of
the canonical text of both. So a record shows by itself whether it is what was written, and a state
whether it fits its record. A record that is whole and describes another model is no damage.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.train import checksum

__all__ = [
    "CheckpointError",
    "DamagedError",
    "check_fits",
    "check_intact",
    "check_same",
    "make",
    "sealed",
]


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another run; the message is one line."""


class DamagedError(CheckpointError):
    """A checkpoint of which something is not what was saved, or not there; one line."""


def make(settings: Mapping[str, Any], state: Any) -> dict[str, Any]:
    """The record of a state. All processes call it, as `checksum.of_leaves`."""
    sums = checksum.of_leaves(state)
    leaves = {
        name: f"{_form(leaf)} {sums[name]}" for name, leaf in checksum.named_leaves(state).items()
    }
    return sealed(settings, leaves)


def sealed(settings: Mapping[str, Any], leaves: Mapping[str, str]) -> dict[str, Any]:
    """The record of these."""
    body = {"settings": settings, "leaves": leaves}
    return body | {"sha256": _digest(body)}


def check_intact(record: Any) -> dict[str, Any]:
    """The record. Raises DamagedError, with the reason alone, unless it is what was written."""
    if not isinstance(record, dict) or not record.keys() & {"leaves", "sha256"}:
        raise DamagedError("it lacks its checksums")
    body = {name: value for name, value in record.items() if name != "sha256"}
    if body.keys() != {"settings", "leaves"} or _digest(body) != record.get("sha256"):
        raise DamagedError("its record of settings and checksums has changed since it was saved")
    return record


def check_fits(record: Mapping[str, Any], expected: Any, where: Path, below: str = "") -> None:
    """Raise CheckpointError, naming the first leaf that differs, unless `expected` was saved.

    `expected` is a tree of arrays or shapes: the state, or with `below` that part of it.
    """
    have = {
        name.removeprefix(below): described.split()[0]
        for name, described in record["leaves"].items()
        if name.startswith(below)
    }
    want = {name: _form(leaf) for name, leaf in checksum.named_leaves(expected).items()}
    for name in sorted(have.keys() | want.keys()):
        a, b = have.get(name, "absent"), want.get(name, "absent")
        if a != b:
            raise CheckpointError(
                f"the parameter {name} of {where} is {a}, but the configuration calls for "
                f"{b}: they belong to different models."
            )


def check_same(record: Mapping[str, Any], restored: Any) -> None:
    """Raise DamagedError, with the reason alone, unless `restored` has the bits that were saved.

    `restored` is the state, or a part of it with the same paths. All processes call it.
    """
    for name, found in checksum.of_leaves(restored).items():
        if record["leaves"][name].split()[1] != found:
            raise DamagedError(f"{name} has other bits than were saved")


def _form(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
