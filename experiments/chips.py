"""Accelerators by their makers' figures, and the times that these let expect."""

from typing import NamedTuple

__all__ = ["CHIPS", "LINKS", "UTILISATION", "Chip", "compute_seconds", "network_seconds"]

UTILISATION = (0.15, 0.3, 0.5)
"""Of a chip's peak: low, expected, high. An assumption."""
LINKS = 0.7
"""Of what links are sold as. An assumption."""


class Chip(NamedTuple):
    """A maker's figures: bytes, operations a second (dense), bytes a second in one direction."""

    name: str
    memory: float
    float32: float
    """Peak of float32 as JAX multiplies it by default: TF32 on a GPU, bfloat16 on a TPU."""
    bfloat16: float
    bandwidth: float
    link: float
    """Of one chip, to the others of its machine."""
    machine: int
    """Chips that such links join."""
    network: float
    """Of a machine, to others."""


CHIPS = (
    Chip("A100 SXM 80 GB", 80e9, 156e12, 312e12, 2.04e12, 300e9, 8, 50e9),
    Chip("H100 SXM", 80e9, 494e12, 989e12, 3.35e12, 450e9, 8, 50e9),
    Chip("H200 SXM", 141e9, 494e12, 989e12, 4.8e12, 450e9, 8, 50e9),
    Chip("TPU v5p", 95 * 2**30, 459e12, 459e12, 2.765e12, 600e9, 8960, 50e9),
)


def compute_seconds(flops: float, chip: Chip, dtype: str, utilisation: float) -> float:
    """Of a step's operations."""
    return flops / (utilisation * (chip.bfloat16 if dtype == "bfloat16" else chip.float32))


def network_seconds(size: float, chips: int, chip: Chip) -> float:
    """Of an all-reduce of `size` bytes, or of a gather and a sum to shares, which take as long.

    Sums are made within each machine, of shares between machines, and handed out within each.
    """
    within = min(chips, chip.machine)
    machines = chips // within
    inside = 2.0 * (within - 1) / within * size / chip.link
    between = 2.0 * (machines - 1) / machines * size / chip.network
    return (inside + between) / LINKS
