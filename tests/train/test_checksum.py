"""The checksum sees what a disk does to a leaf, and not where the leaf lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.train import checksum

DTYPES = (
    "float32", "float16", "bfloat16", "int32", "uint32", "int8", "uint8", "int16", "bool",
)  # fmt: skip


def mixed(x):
    """A bijection of 32-bit words: written anew, in Python's own integers."""
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


def some(dtype, shape=(6, 10), seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 200, shape)).astype(dtype)


def of(array):
    return checksum.of_leaves({"leaf": array})["leaf"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_sum_that_the_docstring_says_for_every_dtype(dtype):
    for shape in ((6, 10), (3, 4, 5), (7,), (), (0, 3)):
        array = some(dtype, shape)
        assert of(array) == expected(array), shape


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64"])
def test_numbers_of_64_bits(dtype, x64):
    array = some(dtype) + 2**40
    assert array.dtype == dtype and of(array) == expected(array)


def test_each_leaf_has_its_name_and_numpy_and_jax_agree():
    tree = {"a": [np.ones(3, np.float32), jnp.zeros(2)], "b": {"c": np.int32(4)}}
    found = checksum.of_leaves(tree)
    assert sorted(found) == ["a/0", "a/1", "b/c"]
    assert found == checksum.of_leaves(jax.tree.map(jnp.asarray, tree))
    assert found["a/0"] != found["a/1"]


def test_it_is_the_same_however_the_leaf_is_split():
    array = some("float32", (16, 24))
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    small = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    for at, spec in (
        (mesh, P()), (mesh, P("data")), (mesh, P(None, "fsdp")), (mesh, P("fsdp", "data")),
        (mesh, P(("data", "fsdp"))), (small, P("data")),
    ):  # fmt: skip
        assert of(jax.device_put(array, NamedSharding(at, spec))) == expected(array), spec


def test_nothing_is_gathered_on_the_way():
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    array = jax.device_put(jnp.zeros((64, 64)), NamedSharding(mesh, P("data")))
    compiled = checksum._function(NamedSharding(mesh, P())).lower(array).compile().as_text()
    assert "all-reduce" in compiled and "all-gather" not in compiled


def flips(array, rng, count):
    """Copies of the array with one bit flipped each."""
    whole = np.asarray(array).tobytes()
    for bit in rng.integers(0, 8 * len(whole), count):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << (bit % 8)
        yield np.frombuffer(bytes(content), np.asarray(array).dtype).reshape(array.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_every_flipped_bit_is_seen(dtype):
    array = some(dtype, (5, 8))
    whole = of(array)
    found = {of(flipped) for flipped in flips(array, np.random.default_rng(1), 300)}
    assert whole not in found and len(found) > 100  # and they tell the flips apart


def test_zeros_swaps_signs_and_payloads_of_nan_are_seen():
    ones = np.ones(4096, np.float32)  # of few bits each, as the scales of a normalisation
    zeroed = ones.copy()
    zeroed[1024:2048] = 0
    halves = np.concatenate([ones[:2048], 2 * ones[2048:]])
    nan = np.full(3, np.nan, np.float32)
    other = nan.copy()
    other.view(np.uint32)[1] ^= 1
    for a, b in (
        (ones, zeroed), (halves, np.roll(halves, 2048)), (np.zeros(2), -np.zeros(2)), (nan, other),
        (ones, ones[:-1]), (np.arange(6.0), np.arange(6.0)[::-1].copy()),
    ):  # fmt: skip
        assert of(a.astype(np.float32)) != of(b.astype(np.float32))


def test_no_two_of_many_damages_of_a_plain_leaf_have_one_checksum():
    """Blocks of zeros in a leaf of ones: a weighted sum has but few bits for them."""
    found = set()
    for start in range(0, 512, 8):
        for length in (8, 16, 64):
            leaf = np.ones(512 + 64, np.float32)
            leaf[start : start + length] = 0
            found.add(of(leaf))
    assert len(found) == 64 * 3
