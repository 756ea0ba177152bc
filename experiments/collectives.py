"""The bytes that devices exchange in a step: by a formula, and as a compiled program has them."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from vdm_jax.train import sharding

__all__ = ["Exchange", "Shares", "abstract_mesh", "compiled", "expected", "sent", "shares"]

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def abstract_mesh(chips: int, shard_params: int) -> AbstractMesh:
    """The mesh that `sharding.make_mesh` makes of so many devices, without them."""
    return AbstractMesh((chips // shard_params, shard_params), ("data", "fsdp"))


class Shares(NamedTuple):
    """Bytes of parameters."""

    split: int
    """In all, of the leaves that are split over the devices of "fsdp"."""
    copied: int
    """Of those of which each device has a copy."""


def shares(params: Any, mesh: Mesh | AbstractMesh) -> Shares:
    """By `sharding.of_parameters`."""
    placed = jax.tree.leaves(sharding.placed(mesh, params))
    split = [not leaf.sharding.is_fully_replicated for leaf in placed]
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in placed]
    whole = sum(sizes)
    of_split = sum(size for size, is_split in zip(sizes, split, strict=True) if is_split)
    return Shares(of_split, whole - of_split)


class Exchange(NamedTuple):
    """Bytes of the results of a step's collective operations on each device, by kind."""

    gathered: int
    """Parameters, over "fsdp"."""
    scattered: int
    """Sums over "fsdp" of the gradients of split leaves, of which each device keeps its share."""
    reduced: int
    """Sums over all devices, or of shares over "data"."""


def expected(of: Shares, data: int, fsdp: int, accumulate: int = 1) -> Exchange:
    """Of one step on several devices; sums count by their operands.

    Parameters are gathered once, gradients summed for each micro-batch.
    """
    of_data = of.split // fsdp if data > 1 else 0
    if fsdp == 1:
        return Exchange(0, 0, accumulate * of.copied)
    return Exchange(of.split, accumulate * of.split, accumulate * (of.copied + of_data))


def sent(of: Shares, data: int, fsdp: int, accumulate: int = 1) -> float:
    """Bytes that each device sends, and receives, in a step, by ring algorithms.

    A gather or a reduce-scatter of m bytes among n devices takes (n - 1) / n m, an all-reduce twice
    that.
    """
    summed = _ring(fsdp) * of.split
    summed += 2.0 * _ring(data) * of.split / fsdp + 2.0 * _ring(data * fsdp) * of.copied
    return _ring(fsdp) * of.split + accumulate * summed


def _ring(devices: int) -> float:
    return (devices - 1) / devices


# ---- as compiled ----

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "u16": 2, "s16": 2, "s32": 4, "u32": 4}
_SIZES |= {"f32": 4, "f64": 8, "s64": 8, "u64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(rf"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_WHILE = re.compile(r' while\(.*body=%?([\w.\-]+).*"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def compiled(text: str) -> Mapping[str, int]:
    """Bytes of the results of a program's collective operations, by kind, loops unrolled.

    `text` is `jax.stages.Compiled.as_text()`. Raises ValueError for a loop of unknown length.
    """
    own: dict[str, dict[str, int]] = {}
    loops: dict[str, list[tuple[str, int]]] = {}
    entry = name = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            own[name], loops[name] = dict.fromkeys(KINDS, 0), []
            entry = name if found[1] else entry
        elif found := _OPERATION.match(line):
            own[name][found[2]] += _bytes(found[1])
        elif found := _WHILE.search(line):
            loops[name].append((found[1], int(found[2])))
        elif " while(" in line:
            raise ValueError(f"a loop of unknown length: {line.strip()[:100]}")

    def total(name: str) -> np.ndarray:
        inside = sum(times * total(body) for body, times in loops[name])
        return np.array(list(own[name].values())) + inside

    return dict(zip(KINDS, map(int, total(entry)), strict=True))


def _bytes(shapes: str) -> int:
    return sum(
        _SIZES[kind] * math.prod(map(int, filter(None, sizes.split(","))))
        for kind, sizes in _ARRAY.findall(shapes)
    )
