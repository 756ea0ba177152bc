"""The record saved beside a state: the run's settings, and the form and bits of each leaf.

A record is a JSON object: "settings", "leaves" (path -> "dtype[shape] checksum"), and "sha256" of
the canonical text of both. A record that is whole and describes another model is no damage.

Orbax keeps no checksum of the numbers themselves: a flipped bit or a block of zeros comes back as
if nothing had been. A digest such as sha256 would need every leaf whole and in order on one host. A
sum is the same however a leaf is split over devices, each of which adds up what it holds.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vdm_jax.errors import UserError

_SALT = 0x9E3779B9


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another run; the message is one line."""


class DamagedError(CheckpointError):
    """A checkpoint with something in it that is not what was saved, or missing."""


def make(settings: Mapping[str, Any], state: Any) -> dict[str, Any]:
    """Returns the record of a state. All processes call it, as `checksums`."""
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
    want = {name: form(leaf) for name, leaf in named_leaves(expected).items()}
    for name in sorted(have.keys() | want.keys()):
        a, b = have.get(name, "absent"), want.get(name, "nothing")
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
    sums = checksums(state)
    return {name: f"{form(x)} {sums[name]}" for name, x in named_leaves(state).items()}


def form(leaf: Any) -> str:
    """Returns the type and shape of a leaf, as "float32[3,4]"."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Yields (dotted name, "name: a -> b") for each leaf in which two nested dicts differ."""
    for key in sorted(saved.keys() | now.keys(), key=str):
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


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns each leaf by its path, as "params/score_model/bias"."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def checksums(tree: Any) -> dict[str, str]:
    """Returns path -> 16 hexadecimal digits for each leaf, an array of any dtype.

    They depend on the leaf's bits and their order alone: two sums modulo 2^32, of
    `m = mix(word ^ mix(position))` over all 32-bit words, and of `mix(m + salt)`. As `mix` is one
    to one, a change of one word changes the first sum for certain; changes of several pass both
    with probability 2^-64. In a plain weighted sum, where all words end in zero bits, as 1.0 does,
    so do all their multiples. All processes must call it, with the same tree.
    """
    sums = {}
    for name, leaf in named_leaves(tree).items():
        sharding = getattr(leaf, "sharding", None)
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
        sums[name] = _function(mesh)(leaf)
    return {name: f"{a:08x}{b:08x}" for name, (a, b) in jax.device_get(sums).items()}


@functools.cache
def _function(mesh: Mesh | None) -> Any:
    """Returns `_sums` compiled, with a result that every process of the mesh can read."""
    return jax.jit(_sums, out_shardings=mesh and NamedSharding(mesh, PartitionSpec()))


def _sums(leaf: jax.Array) -> jax.Array:
    words = _words(leaf)
    position, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):  # no reshape, which would gather what is split
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position += along * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    once = _mix(words ^ _mix(position))
    twice = _mix(once + jnp.uint32(_SALT))
    return jnp.stack([jnp.sum(once, dtype=jnp.uint32), jnp.sum(twice, dtype=jnp.uint32)])


def _words(leaf: jax.Array) -> jax.Array:
    """Returns the bits as uint32 of the leaf's shape; 64-bit numbers have an axis of 2 more."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    unsigned = {1: np.uint8, 2: np.uint16}.get(leaf.dtype.itemsize, np.uint32)
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """Returns x with each bit spread over all 32; one to one, as its steps are."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
