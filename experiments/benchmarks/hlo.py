"""What a compiled program does, read from its text (HLO): loops count as often as they run."""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

Computations = dict[str, list[str]]

KINDS = (
    "convolutions and products", "attention", "random bits", "copies and slices", "elementwise",
)  # fmt: skip

_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip
_MOVES = set(
    "parameter constant copy copy-start copy-done bitcast slice dynamic-slice dynamic-update-slice "
    "broadcast transpose reshape pad concatenate tuple get-tuple-element fusion custom-call".split()
)
_OP = r" ([a-z][a-z0-9-]*)\("  # of an instruction: NAME = SHAPE OP(OPERANDS), ATTRIBUTES
_MOST_CYCLES = 10**9  # of one operation; the compiler says more where it has no model of it
_WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s64": 8, "u64": 8,
           "f64": 8}  # fmt: skip


class Summary(NamedTuple):
    """One call of a program on one device."""

    cycles: dict[str, float]
    """Cycles that the compiler estimates, by kind of operation; empty where it estimates none."""
    collectives: dict[str, tuple[int, int]]
    """Number and bytes of the results, by kind of operation."""
    unknown_loops: int
    """Loops whose length isn't in the text, counted as if they ran once."""


def summarise(text: str) -> Summary:
    """Returns what the program of a text does."""
    found, entry = computations(text)
    cycles, counts, sizes, unknown = (collections.Counter[str]() for _ in range(4))
    for line, op, times in _executed(found, entry, 1, unknown):
        inside = list(_inside(found, line))
        for each in (line, *inside):
            if kind := _collective(each):
                counts[kind] += times
                sizes[kind] += times * result_bytes(each)
        estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
        if estimate and 0 < (value := int(estimate[1])) < _MOST_CYCLES:
            cycles[_kind(line, {op, *map(_op, inside)}, inside)] += times * value
    collectives = {kind: (counts[kind], sizes[kind]) for kind in sorted(counts)}
    return Summary(dict(cycles), collectives, unknown.total())


def computations(text: str) -> tuple[Computations, str]:
    """Returns the instructions of each computation by its name, and the name of the first."""
    found, entry, lines = Computations(), "", list[str]()
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            lines = found[head[2]] = []
            entry = head[2] if head[1] else entry
        elif line.startswith("  "):
            lines.append(line)
    return found, entry


def result_bytes(line: str) -> int:
    """Returns the bytes of an instruction's result; of a start, those that its end will give."""
    shape = re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", re.split(_OP, line.split(" = ", 1)[1])[0])
    arrays = re.findall(r"\w+\[[\d,]*\]", shape)
    if _op(line) in ("all-gather-start", "collective-permute-start"):  # (operands, results, ...)
        several = re.match(r"\(\(.*?\), \((.*?)\)", shape)
        arrays = re.findall(r"\w+\[[\d,]*\]", several[1]) if several else arrays[1:2]
    return sum(map(_size, arrays))


def _size(shape: str) -> int:
    kind, dims = shape.rstrip("]").split("[")
    return _WIDTHS.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)


def _executed(
    found: Computations, name: str, times: int, unknown: collections.Counter[str]
) -> Iterator[tuple[str, str, int]]:
    """Gives the instructions that run, the kind of each and how often it runs."""
    for line in found[name]:
        op = _op(line)
        if op == "while":
            trips = _trips(found, line, found[name])
            unknown[name] += trips is None
            yield from _executed(found, _named(line, "body"), times * (trips or 1), unknown)
        elif op == "call":
            yield from _executed(found, _named(line, "to_apply"), times, unknown)
        else:
            yield line, op, times


def _trips(found: Computations, line: str, before: list[str]) -> int | None:
    """Returns how often a loop runs: as the compiler says, or by its counter's start, step and end.

    The counter is what the condition compares with a constant; None if it isn't as plain as that.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    condition, body = (found[_named(line, part)] for part in ("condition", "body"))
    test = _instruction(condition, _root(condition))
    if _op(test) != "compare" or "direction=LT" not in test:
        return None
    counter, end = (_source(condition, name) for name in _operands(test))
    place = re.search(r"get-tuple-element\(.*index=(\d+)", counter)
    if place is None:
        return None
    first, following = (
        _source(lines, _operands(_source(lines, name))[int(place[1])])
        for lines, name in ((before, _operands(line)[0]), (body, _root(body)))
    )
    added = [_source(body, name) for name in _operands(following)] if " add(" in following else []
    steps = [value for each in added if (value := _constant(each)) is not None]
    bounds = _constant(first), _constant(end)
    if None in bounds or len(steps) != 1:
        return None
    return -(-(bounds[1] - bounds[0]) // steps[0])  # type: ignore[operator]


def _root(lines: list[str]) -> str:
    return next(_name(line) for line in lines if line.startswith("  ROOT"))


def _name(line: str) -> str:
    return line.split(" = ")[0].split("%")[-1].split()[-1]


def _instruction(lines: list[str], name: str) -> str:
    return next((line for line in lines if _name(line) == name), "")


def _source(lines: list[str], name: str) -> str:
    """Returns the instruction that gives a value, past copies of it."""
    line = _instruction(lines, name)
    return _source(lines, _operands(line)[0]) if _op(line) in ("copy", "bitcast") else line


def _operands(line: str) -> list[str]:
    found = re.search(_OP + r"(.*?)\)", line)
    return re.findall(r"%([\w.-]+)", found[2]) if found else []


def _constant(line: str) -> int | None:
    found = re.search(r" constant\((\d+)\)", line)
    return int(found[1]) if found else None


def _inside(found: Computations, line: str) -> Iterator[str]:
    """Gives the instructions of what an instruction calls, as a fusion does."""
    for name in re.findall(r"calls=%?([\w.-]+)", line):
        for each in found[name]:
            yield each
            yield from _inside(found, each)


def _kind(line: str, ops: set[str], inside: list[str]) -> str:
    if re.search(r'op_name="[^"]*\battn', line):
        return KINDS[1]
    if ops & {"convolution", "dot"}:
        return KINDS[0]
    if "rng-bit-generator" in ops or sum(_op(each) == "xor" for each in inside) > 10:
        return KINDS[2]
    return KINDS[3] if ops <= _MOVES else KINDS[4]


def _collective(line: str) -> str | None:
    op = _op(line).removesuffix("-start")
    return op if op in _COLLECTIVES else None


def _op(line: str) -> str:
    found = re.search(_OP, line)
    return found[1] if found else ""


def _named(line: str, what: str) -> str:
    found = re.search(rf"{what}=%?([\w.-]+)", line)
    assert found is not None, line
    return found[1]
