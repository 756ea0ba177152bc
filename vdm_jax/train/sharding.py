"""One mesh, data-parallel: parameters on every device, a batch spread over all of them."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["check_batch_size", "make_mesh", "put", "replicated", "split_over"]

T = TypeVar("T")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the single axis "data" over the given devices, by default all of them."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_over(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis number `axis` split over the devices, the others whole."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put(batch: Mapping[str, np.ndarray], mesh: Mesh, axis: int = 0) -> dict[str, jax.Array]:
    """This host's part of a batch -> the global batch, split along `axis`.

    Axes before `axis` are the same on every host.
    """
    sharding = split_over(mesh, axis)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raise ValueError unless each device gets a whole, equal share of every micro-batch."""
    parts = mesh.size * accumulate
    if batch_size < 1 or accumulate < 1 or batch_size % parts:
        raise ValueError(
            f"batch size {batch_size} can't be split evenly into {accumulate} micro-batch(es) on "
            f"{mesh.size} device(s): wanted a multiple of {parts}."
        )
