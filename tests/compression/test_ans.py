"""Stacks of bits against exact arithmetic, entropies and distributions."""

import jax
import numpy as np
import pytest

from vdm_jax.compression.ans import PRECISION, TOTAL, Stacks, Underflow

LANES, N, SYMBOLS = 300, 40, 23  # of one shape, compiled once
ALL = np.ones(LANES, bool)


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def table(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Random counts, some of them 1."""
    weights = rng.dirichlet(np.full(SYMBOLS, 0.3), rows)
    below = np.concatenate([np.zeros((rows, 1)), np.cumsum(weights, axis=1)], axis=1)
    counts = np.floor(np.minimum(below, 1.0) * (TOTAL - SYMBOLS)).astype(np.uint32)
    counts += np.arange(SYMBOLS + 1, dtype=np.uint32)
    counts[:, -1] = TOTAL
    return counts


def filled(rng: np.random.Generator, words: int) -> Stacks:
    """Random bits, another number of words in each lane."""
    stacks = Stacks(LANES)
    stacks.sizes = rng.integers(words // 2, words + 1, LANES)
    there = np.arange(words) < stacks.sizes[:, None]
    stacks.words = rng.integers(0, 2**32, (LANES, words), dtype=np.uint32) * there
    stacks.states = rng.integers(2**32, 2**63, LANES, dtype=np.uint64)
    return stacks


def dumped(stacks: Stacks) -> list[bytes]:
    return [stacks.dump(lane) for lane in range(LANES)]


def loaded(contents: list[bytes]) -> Stacks:
    stacks = Stacks(LANES)
    for lane, content in enumerate(contents):
        stacks.load(lane, content)
    return stacks


def push(stacks: Stacks, counts: np.ndarray, rows: np.ndarray, symbols, active=ALL) -> None:
    starts = counts[rows, symbols]
    stacks.push(starts, counts[rows, symbols + 1] - starts, active)


def test_what_is_pushed_comes_back_and_what_is_popped_goes_back():
    rng = np.random.default_rng(0)
    counts, active = table(rng, 50), rng.random(LANES) < 0.9
    rows, symbols = rng.integers(0, 50, (N, LANES)), rng.integers(0, SYMBOLS, (N, LANES))
    stacks = filled(rng, 30)
    before = dumped(stacks)
    push(stacks, counts, rows, symbols, active)
    changed = np.array([a != b for a, b in zip(before, dumped(stacks), strict=True)])
    np.testing.assert_array_equal(changed, active)
    pushed = dumped(stacks)
    found = stacks.pop(counts, rows, active)
    np.testing.assert_array_equal(found[:, active], symbols[:, active])
    assert dumped(stacks) == before
    again = loaded(pushed)
    drawn = again.pop(counts, rows[::-1], active)
    push(again, counts, rows[::-1], drawn, active)
    assert dumped(again) == pushed


def test_the_length_is_the_information_content_and_popping_draws_from_the_table():
    rng = np.random.default_rng(2)
    counts = table(rng, 1)
    probabilities = np.diff(counts[0].astype(float)) / TOTAL
    stacks, rows = filled(rng, 60), np.zeros((N, LANES), int)
    before = stacks.bits()
    symbols = stacks.pop(counts, rows, ALL)
    information = -np.log2(probabilities[symbols]).sum(axis=0)
    np.testing.assert_allclose(before - stacks.bits(), information, atol=0.05)
    held = 8 * np.array([len(content) for content in dumped(stacks)]) - stacks.bits() - PRECISION
    assert np.all((held >= 0) & (held <= 8))  # an empty one is TOTAL
    expected, found = probabilities * symbols.size, np.bincount(symbols.flat, minlength=SYMBOLS)
    often = expected > 5
    chi_square = np.sum((found - expected)[often] ** 2 / expected[often])
    assert often.sum() > 5 and chi_square < 3 * often.sum()


def test_an_empty_stack_is_told_and_by_lane():
    stacks = filled(np.random.default_rng(3), 40)
    stacks.sizes[1] = 1
    counts = np.linspace(0, TOTAL, SYMBOLS + 1).astype(np.uint32)[None]
    rows = np.zeros((N, LANES), int)
    with pytest.raises(Underflow) as error:
        stacks.pop(counts, rows, ALL)
    np.testing.assert_array_equal(error.value.lanes, np.arange(LANES) == 1)
    # Lanes that aren't active may be as empty as they like.
    stacks.pop(counts, rows, np.arange(LANES) != 1)
    assert stacks.sizes[1] == 1
    one = Stacks(2)
    with pytest.raises(Underflow) as error:
        one.pop_one(1, 0, 1 << 20)
    np.testing.assert_array_equal(error.value.lanes, [False, True])
    assert one.empty().all() and not stacks.empty().any()


def test_scrambling_twice_is_nothing_and_once_leaves_fair_bits():
    stacks = filled(np.random.default_rng(4), 4000)  # of so many sizes, each with its own mask
    stacks.words[:] = 0xAAAAAAAA
    before, bits, active = dumped(stacks), stacks.bits(), np.arange(LANES) != 7
    stacks.scramble(16, 3, active)
    assert stacks.dump(7) == before[7]
    # Leading bits stay, so that no length is added.
    np.testing.assert_allclose(stacks.bits(), bits, atol=2.0**-7)
    tops = np.stack([stacks.words[np.arange(LANES), stacks.sizes - k][active] for k in (1, 5, 9)])
    ones = np.unpackbits(tops.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 6 * 0.5 / np.sqrt(32 * tops.size)
    deeper = stacks.words[np.arange(LANES), stacks.sizes - 10]
    assert np.all(deeper == 0xAAAAAAAA)
    salted = loaded(before)
    salted.scramble(16, 4, active)
    assert np.mean(salted.words[np.arange(LANES), salted.sizes - 1][active] == tops[0]) < 0.01
    stacks.scramble(16, 3, active)
    assert dumped(stacks) == before


def test_bytes():
    for bits in (26, 31, 32, 63):
        stacks, other = Stacks(1), Stacks(1)
        stacks.states[0] = 1 << bits
        content = stacks.dump(0)
        other.load(0, content)
        assert len(content) == bits // 8 + 1 and other.states[0] == 1 << bits
    for content in (b"", b"abc\0", b"abcdefgh\0", b"\xff\xff\xff\3"):
        with pytest.raises(ValueError, match="no stack"):
            Stacks(1).load(0, content)
    with jax.enable_x64(False), pytest.raises(ValueError, match="enable_x64"):
        Stacks(1)
