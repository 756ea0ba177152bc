"""One mesh of two axes: a batch is spread over both, large parameters over the second.

Over the axis "data" parameters are copied; over the axis "fsdp" each large one is split, together
with its average and the optimiser's moments of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")

SMALL = 2**14  # elements, below which a leaf is copied: 64 KiB saved are not worth a gather


def make_mesh(devices: Sequence[jax.Device] | None = None, shard_params: int = 1) -> Mesh:
    """Returns a mesh ("data", "fsdp") over the devices, by default all; `shard_params` in "fsdp".

    Raises ValueError unless `shard_params` divides the number of devices.
    """
    found = np.asarray(jax.devices() if devices is None else devices)
    if shard_params < 1 or found.size % shard_params:
        known = ", ".join(str(n) for n in range(1, found.size + 1) if found.size % n == 0)
        said = f"shard_params is {shard_params}, but parameters are split over a number of devices"
        raise ValueError(f"{said} that divides all {found.size}: choose one of {known}.")
    return Mesh(found.reshape(-1, shard_params), ("data", "fsdp"))


def platform(mesh: Mesh | AbstractMesh | None) -> str | None:
    """Returns the platform of a mesh's devices, as "tpu", whatever this process runs on."""
    return None if mesh is None else mesh.abstract_mesh.abstract_device.platform


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_over(mesh: Mesh | AbstractMesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding of axis number `axis` over all devices, the others whole."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))


def of_parameters(mesh: Mesh | AbstractMesh, tree: T) -> T:
    """Returns the sharding of each leaf of parameters, or of a whole state, by its shape alone.

    The largest axis that "fsdp" divides is split (the last of several); a leaf without one, or one
    with less than `SMALL` elements, is copied.
    """
    parts = mesh.shape["fsdp"]

    def of_leaf(leaf: Any) -> NamedSharding:
        sizes = [(size, axis) for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < SMALL or not sizes:
            return replicated(mesh)
        _, axis = max(sizes)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(of_leaf, tree)


def gathered(mesh: Mesh | AbstractMesh | None, tree: T) -> T:
    """Returns the same tree, of which every device has all from here on in the program."""
    # Left to itself the compiler splits a layer's output by channels, as its kernel is, and devices
    # exchange activations of the whole batch, many times the bytes of the parameters.
    if mesh is None or mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def shared(mesh: Mesh | AbstractMesh | None, tree: T) -> T:
    """Returns the same tree, of which each device has its share from here on in the program."""
    if mesh is None or mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, of_parameters(mesh, tree))


def placed(mesh: Mesh | AbstractMesh, shapes: T) -> T:
    """Returns the shapes with the shardings of `of_parameters`."""
    made, shares = jax.ShapeDtypeStruct, of_parameters(mesh, shapes)
    return jax.tree.map(lambda of, at: made(of.shape, of.dtype, sharding=at), shapes, shares)


def put(batch: Mapping[str, Any], mesh: Mesh, axis: int = 0) -> dict[str, Any]:
    """Returns the global batch, split along `axis`, of which `batch` is this host's part."""
    make, sharding = jax.make_array_from_process_local_data, split_over(mesh, axis)
    return jax.tree.map(lambda value: make(sharding, np.asarray(value)), dict(batch))


def of_first(found: bool) -> bool:
    """Returns what process 0 has found. All processes must call it, and then go the same way."""
    if jax.process_count() == 1:
        return found
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(found, np.int32)))
