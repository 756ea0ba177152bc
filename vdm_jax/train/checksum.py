"""64 bits for each leaf of a state, by which a checkpoint shows that it is what was saved.

Orbax keeps no checksum of the numbers themselves: a flipped bit or a block of zeros comes back as
if nothing had been. A digest such as sha256 would need every leaf whole and in order on one host. A
sum is the same however a leaf is split over devices, each of which adds up what it holds.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_SALT = 0x9E3779B9


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns each leaf by its path, as "params/score_model/bias"."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def of_leaves(tree: Any) -> dict[str, str]:
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
