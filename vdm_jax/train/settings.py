"""Nested settings, those of a run then and now."""

from collections.abc import Iterator, Mapping
from typing import Any


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
