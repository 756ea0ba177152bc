"""The checksum sees what a disk does to a leaf, and not where the leaf lies."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.train import record


def mixed(x):
    """A bijection of 32-bit words, in Python's own integers."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
    x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
    return x ^ (x >> 16)


def expected(array):
    """The sums, word by word."""
    array = np.asarray(array)
    if array.dtype == bool:
        words = array.ravel().astype(np.uint32)
    else:
        unsigned = {1: np.uint8, 2: np.uint16}.get(array.dtype.itemsize, np.uint32)
        words = array.ravel().view(unsigned)
    once = [mixed(int(word) ^ mixed(at)) for at, word in enumerate(words)]
    twice = [mixed((m + 0x9E3779B9) % 2**32) for m in once]
    return f"{sum(once) % 2**32:08x}{sum(twice) % 2**32:08x}"


def some(dtype, shape=(6, 10)):
    return jnp.asarray(np.random.default_rng(0).integers(0, 200, shape)).astype(dtype)


def of(array):
    return record.checksums({"leaf": array})["leaf"]


def test_it_is_the_sum_that_the_docstring_says_for_every_dtype_and_shape():
    for shape in ((6, 10), (3, 4, 5), (7,), (), (0, 3)):
        assert of(some("float32", shape)) == expected(some("float32", shape)), shape
    for dtype in ("bfloat16", "int32", "uint8", "bool"):
        assert of(some(dtype)) == expected(some(dtype)), dtype


def test_numbers_of_64_bits(x64):
    array = some("float64") + 2**40
    assert array.dtype == "float64" and of(array) == expected(array)


def test_it_is_the_same_however_the_leaf_is_split_and_nothing_is_gathered_on_the_way():
    array, mesh = some("float32", (6, 10)), Mesh(np.asarray(jax.devices()[:2]), ("data",))
    for spec in (P(), P("data"), P(None, "data")):
        assert of(jax.device_put(array, NamedSharding(mesh, spec))) == expected(array), spec
    split = jax.device_put(array, NamedSharding(mesh, P("data")))
    compiled = record._function(mesh).lower(split).compile().as_text()
    assert "all-reduce" in compiled and "all-gather" not in compiled


def test_flips_zeros_swaps_signs_and_payloads_of_nan_are_seen():
    ones = np.ones(4096, np.float32)  # of few bits each, as the scales of a normalisation
    zeroed = ones.copy()
    zeroed[1024:2048] = 0
    halves = np.concatenate([ones[:2048], 2 * ones[2048:]])
    nan = np.full(4096, np.nan, np.float32)
    other = nan.copy()
    other.view(np.uint32)[1] ^= 1
    damaged = [ones, zeroed, halves, np.roll(halves, 2048), 0 * ones, -0.0 * ones, nan, other]
    for bit in range(32):
        flipped = ones.copy()
        flipped.view(np.uint32)[61 * bit] ^= 1 << bit
        damaged.append(flipped)
    assert len({of(array) for array in damaged}) == len(damaged)
