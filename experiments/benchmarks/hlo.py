"""The work of a compiled program, read from its text (HLO): loops count as often as they run."""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "convolutions and products", "the same with random bits", "attention", "random bits",
    "copies and slices", "elementwise and sums",
)  # fmt: skip

Computation = dict[str, str]
"""Instructions by name, each a line NAME = SHAPE OP(OPERANDS), ATTRIBUTES."""

_OP = r" ([a-z][a-z0-9-]*)\("
_COLLECTIVES = {
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
}  # fmt: skip
_MOVES = {
    "parameter", "constant", "copy", "bitcast", "slice", "dynamic-slice", "dynamic-update-slice",
    "broadcast", "transpose", "reshape", "pad", "concatenate", "tuple", "get-tuple-element",
    "fusion", "custom-call",
}  # fmt: skip
_MOST_CYCLES = 10**9  # of one operation; the compiler says more where it has no model of it
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s64": 8, "u64": 8,
          "f64": 8}  # fmt: skip


class Summary(NamedTuple):
    """One call of a program on one device."""

    cycles: dict[str, float]
    """Cycles that the compiler estimates, by kind of operation; empty where it estimates none."""
    collectives: dict[str, tuple[int, int]]
    """Number, and bytes of the results, by kind of collective operation."""
    unknown_loops: int
    """Loops whose length isn't in the text, counted as if they ran once."""


def summarise(text: str) -> Summary:
    """Returns what the program of a text does."""
    found, entry = _computations(text)
    cycles, counts, sizes, unknown = (collections.Counter[str]() for _ in range(4))
    for line, times in _executed(found, entry, 1, unknown):
        inside = list(_inside(found, line))
        # A TPU's reduce-scatter is a fusion of a sum and of the share that is taken of it.
        scattered = "calls=%all-reduce-scatter" in line
        for each in () if scattered else (line, *inside):
            if (kind := _op(each).removesuffix("-start")) in _COLLECTIVES:
                counts[kind] += times
                sizes[kind] += times * _result_bytes(each)
        if scattered:
            counts["reduce-scatter"] += times
            sizes["reduce-scatter"] += times * _result_bytes(line)
        estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
        if estimate and 0 < (value := int(estimate[1])) < _MOST_CYCLES:
            cycles[_kind(line, [_op(line), *map(_op, inside)])] += times * value
    collectives = {kind: (counts[kind], sizes[kind]) for kind in sorted(counts)}
    return Summary(dict(cycles), collectives, unknown.total())


def _computations(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations by name, and the name of the first to run."""
    found, entry, lines = dict[str, Computation](), "", Computation()
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = found[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif named := re.match(r"  (?:ROOT )?%?([\w.-]+) = ", line):
            lines[named[1]] = line
    return found, entry


def _executed(
    found: dict[str, Computation], name: str, times: int, unknown: collections.Counter[str]
) -> Iterator[tuple[str, int]]:
    """Gives the instructions that run, and how often each does; counts in `unknown` loops."""
    for line in found[name].values():
        if _op(line) == "while":
            trips = _trips(found, line, found[name])
            unknown[name] += trips is None
            yield from _executed(found, _named(line, "body"), times * (trips or 1), unknown)
        elif _op(line) == "call":
            yield from _executed(found, _named(line, "to_apply"), times, unknown)
        else:
            yield line, times


def _trips(found: dict[str, Computation], line: str, around: Computation) -> int | None:
    """Returns how often a loop runs: as the compiler says, or by its counter's start, step and end.

    The counter is what the condition compares with a constant; None if it isn't as plain as that.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    condition, body = (found[_named(line, part)] for part in ("condition", "body"))
    test = _root(condition)
    counter, *end = (_source(condition, name) for name in _operands(test))
    place = re.search(r"get-tuple-element\(.*index=(\d+)", counter)
    if "direction=LT" not in test or place is None:
        return None
    index = int(place[1])
    start = _source(around, _operands(_source(around, _operands(line)[0]))[index])
    after = _source(body, _operands(_root(body))[index])
    steps = [_source(body, name) for name in _operands(after)] if _op(after) == "add" else []
    numbers = [re.search(r" constant\((\d+)\)", each) for each in (start, *end, *steps)]
    values = [int(number[1]) for number in numbers if number]
    return -((values[0] - values[1]) // values[2]) if len(values) == 3 else None


def _root(lines: Computation) -> str:
    return next(line for line in lines.values() if line.startswith("  ROOT"))


def _source(lines: Computation, name: str) -> str:
    """Returns the instruction that gives a value, past copies of it."""
    line = lines.get(name, "")
    return _source(lines, _operands(line)[0]) if _op(line) in ("copy", "bitcast") else line


def _inside(found: dict[str, Computation], line: str) -> Iterator[str]:
    """Gives the instructions of what an instruction calls, as a fusion does."""
    for name in re.findall(r"calls=%?([\w.-]+)", line):
        for each in found[name].values():
            yield each
            yield from _inside(found, each)


def _kind(line: str, ops: list[str]) -> str:
    products, products_with_bits, attention, bits, moves, rest = KINDS
    random = "rng-bit-generator" in ops or ops.count("xor") > 10  # those of threefry
    if re.search(r'op_name="[^"]*\battn', line):
        return attention
    if {"convolution", "dot"} & set(ops):
        return products_with_bits if random else products
    if random:
        return bits
    return moves if set(ops) <= _MOVES else rest


def _result_bytes(line: str) -> int:
    """Returns the bytes of an instruction's result; of a start, those that its end will give."""
    shape = re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", re.split(_OP, line.split(" = ", 1)[1])[0])
    if _op(line) in ("all-gather-start", "collective-permute-start"):  # (operands, results, ...)
        several = re.match(r"\(\(.*?\), \((.*?)\)", shape)
        shape = several[1] if several else shape.split(", ")[1]
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(_BYTES.get(kind, 4) * math.prod(map(int, re.findall(r"\d+", dims)))
               for kind, dims in arrays)  # fmt: skip


def _op(line: str) -> str:
    found = re.search(_OP, line)
    return found[1] if found else ""


def _operands(line: str) -> list[str]:
    found = re.search(_OP + r"(.*?)\)", line)
    return re.findall(r"%([\w.-]+)", found[2]) if found else []


def _named(line: str, what: str) -> str:
    """Returns the name of a computation that an instruction runs."""
    found: list[str] = re.findall(rf"{what}=%?([\w.-]+)", line)
    return found[0]
