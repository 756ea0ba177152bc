"""Stacks of bits against exact arithmetic, entropies and distributions."""

import jax
import numpy as np
import pytest
from vdm_jax.compression.scramble import scramble

from vdm_jax.compression.ans import PRECISION, TOTAL, Stacks, Underflow


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def table(rng: np.random.Generator, rows: int, symbols: int) -> np.ndarray:
    """Random counts, some of them 1."""
    weights = rng.dirichlet(np.full(symbols, 0.3), rows)
    below = np.concatenate([np.zeros((rows, 1)), np.cumsum(weights, axis=1)], axis=1)
    counts = np.floor(np.minimum(below, 1.0) * (TOTAL - symbols)).astype(np.uint32)
    counts += np.arange(symbols + 1, dtype=np.uint32)
    counts[:, -1] = TOTAL
    return counts


def filled(rng: np.random.Generator, lanes: int, words: int) -> Stacks:
    """With random bits, another number of words in each."""
    stacks = Stacks(lanes)
    stacks.sizes = rng.integers(words // 2, words + 1, lanes)
    there = np.arange(words) < stacks.sizes[:, None]
    stacks.words = rng.integers(0, 2**32, (lanes, words), dtype=np.uint32) * there
    stacks.states = rng.integers(2**32, 2**63, lanes, dtype=np.uint64)
    return stacks


def same(stacks: Stacks, other: Stacks) -> bool:
    lanes = range(len(stacks.states))
    return all(stacks.dump(lane) == other.dump(lane) for lane in lanes)


def copy(stacks: Stacks) -> Stacks:
    other = Stacks(len(stacks.states))
    for lane in range(len(stacks.states)):
        other.load(lane, stacks.dump(lane))
    return other


def test_ten_thousand_random_round_trips():
    rng = np.random.default_rng(0)
    lanes, n = 10_000, 12
    stacks = filled(rng, lanes, 12)
    before = copy(stacks)
    counts = table(rng, 50, 23)
    rows = rng.integers(0, len(counts), (n, lanes))
    active = rng.random(lanes) < 0.9
    symbols = rng.integers(0, 23, (n, lanes))
    starts = counts[rows, symbols]
    stacks.push(starts, counts[rows, symbols + 1] - starts, active)
    pushed = copy(stacks)
    found = stacks.pop(counts, rows, active)
    np.testing.assert_array_equal(found[:, active], symbols[:, active])
    assert same(stacks, before)
    # And the other way round: what is popped from random bits goes back onto them.
    drawn = pushed.pop(counts, rows, active)
    starts = counts[rows, drawn]
    again = copy(pushed)
    again.push(starts, counts[rows, drawn + 1] - starts, active)
    stacks.push(counts[rows, symbols], counts[rows, symbols + 1] - counts[rows, symbols], active)
    assert same(again, stacks)


def test_the_length_is_the_information_content():
    rng = np.random.default_rng(1)
    counts = table(rng, 7, 40)
    rows = rng.integers(0, 7, (5000, 3))
    probabilities = np.diff(counts.astype(float), axis=1) / TOTAL
    symbols = np.array(
        [[rng.choice(40, p=probabilities[row]) for row in line] for line in rows[:400]]
    )
    rows = rows[:400]
    stacks = filled(rng, 3, 10)
    starts, before = counts[rows, symbols], stacks.bits()
    stacks.push(starts, counts[rows, symbols + 1] - starts, np.ones(3, bool))
    information = -np.log2(probabilities[rows, symbols]).sum(axis=0)
    np.testing.assert_allclose(stacks.bits() - before, information, atol=0.2)
    for lane in range(3):
        held = stacks.bits()[lane] + PRECISION  # an empty one is TOTAL
        assert held <= 8 * len(stacks.dump(lane)) <= held + 8


def test_popping_random_bits_draws_from_the_table():
    rng = np.random.default_rng(2)
    counts = table(rng, 1, 12)
    stacks = filled(rng, 500, 200)
    symbols = stacks.pop(counts, np.zeros((150, 500), int), np.ones(500, bool))
    expected = np.diff(counts[0].astype(float)) / TOTAL * symbols.size
    found = np.bincount(symbols.reshape(-1), minlength=12)
    often = expected > 5
    chi_square = np.sum((found - expected)[often] ** 2 / expected[often])
    assert chi_square < 3 * often.sum()
    assert often.sum() > 5


def test_an_empty_stack_is_told_and_by_lane():
    stacks = filled(np.random.default_rng(3), 3, 40)
    stacks.sizes[1] = 1
    uniform = np.linspace(0, TOTAL, 65).astype(np.uint32)[None]
    rows = np.zeros((60, 3), int)
    with pytest.raises(Underflow) as error:
        stacks.pop(uniform, rows, np.ones(3, bool))
    np.testing.assert_array_equal(error.value.lanes, [False, True, False])
    # Lanes that aren't active may be as empty as they like.
    stacks.pop(uniform, rows, np.array([True, False, True]))
    assert stacks.sizes[1] == 1


def test_scrambling_twice_is_nothing_and_once_leaves_fair_bits():
    rng = np.random.default_rng(4)
    stacks = filled(rng, 2000, 4000)  # of so many sizes, each with its own mask
    stacks.words[:] = 0xAAAAAAAA
    before, bits = copy(stacks), stacks.bits()
    active = np.arange(2000) != 7
    scramble(stacks, 16, 3, active)
    assert stacks.dump(7) == before.dump(7)
    # Leading bits stay, so that no length is added.
    np.testing.assert_allclose(stacks.bits(), bits, atol=2.0**-7)
    assert abs(np.mean(stacks.bits() - bits)) < 1e-4
    top = stacks.words[np.arange(2000), stacks.sizes - 1][active]
    ones = np.unpackbits(top.view(np.uint8)).mean()
    distinct = len(np.unique(stacks.sizes))
    assert distinct > 1000
    assert abs(ones - 0.5) < 6 * 0.5 / np.sqrt(distinct * 32)
    # Another salt, another mask.
    other = copy(before)
    scramble(other, 16, 4, active)
    other_top = other.words[np.arange(2000), other.sizes - 1][active]
    assert np.mean(top == other_top) < 0.01
    scramble(stacks, 16, 3, active)
    assert same(stacks, before)


def test_single_symbols_are_those_of_arrays():
    rng = np.random.default_rng(5)
    counts = table(rng, 1, 9)
    stacks = Stacks(1)
    one = Stacks(1)
    symbols = rng.integers(0, 9, 300)
    starts = counts[0, symbols]
    sizes = counts[0, symbols + 1] - starts
    stacks.push(starts[:, None], sizes[:, None], np.ones(1, bool))
    for start, size in zip(starts[::-1].tolist(), sizes[::-1].tolist(), strict=True):
        one.push_one(0, start, size)
    assert same(one, stacks)
    for symbol in symbols.tolist():
        found = int(np.searchsorted(counts[0], one.top(0), side="right")) - 1
        assert found == symbol
        one.pop_one(0, int(counts[0, found]), int(counts[0, found + 1] - counts[0, found]))
    assert one.empty().all()


@pytest.mark.parametrize("bits", [26, 31, 32, 33, 63])
def test_a_state_without_words_as_bytes(bits):
    stacks = Stacks(1)
    stacks.states[0] = 1 << bits
    content = stacks.dump(0)
    assert len(content) == bits // 8 + 1
    other = Stacks(1)
    other.load(0, content)
    assert other.states[0] == 1 << bits and other.sizes[0] == 0


def test_bytes_that_are_no_stack():
    for content in (b"", b"\0", b"abc\0", b"abcdefgh\0", b"\xff\xff\xff\3"):
        with pytest.raises(ValueError, match="no stack"):
            Stacks(1).load(0, content)


def test_64_bits_are_asked_for():
    with jax.enable_x64(False), pytest.raises(ValueError, match="enable_x64"):
        Stacks(1)
