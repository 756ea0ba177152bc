"""Stacks of bits: range asymmetric numeral systems (Duda 2009, arXiv 1311.2540), many in step.

A stack holds a number. Pushing a symbol of probability p multiplies it by about 1/p; popping undoes
this exactly, so that symbols popped from bits that are there already are drawn with these
probabilities. The number is kept as a `state` of 64 bits above words of 32, the last of them on
top; probabilities are counts of `TOTAL`. Arrays of symbols are pushed last first and popped first
first, with all stacks (lanes) side by side. Needs 64-bit JAX (`jax.enable_x64`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PRECISION, WORD = 26, 32
TOTAL = 1 << PRECISION
_LOW = (1 << WORD) - 1
_SPILL = 64 - PRECISION  # a word leaves the state where the push would take it past 64 bits
_LEADING = 8  # bits of a state that are never scrambled
_GOLDEN = 0x9E3779B97F4A7C15


class Underflow(Exception):
    """Stacks had not enough bits to pop from; `lanes`, booleans, says which. They are lost."""

    def __init__(self, lanes: np.ndarray) -> None:
        super().__init__("a stack ran empty")
        self.lanes = lanes


class Stacks:
    """One stack for each lane. An empty stack is the state TOTAL and no words.

    `states` are uint64 [lanes], at least 2^32 wherever there are words, else at least TOTAL;
    `words` uint32 [lanes, capacity], of which the first `sizes`, int64 [lanes], count.
    """

    def __init__(self, lanes: int) -> None:
        if jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
            raise ValueError("compression needs 64-bit JAX: with jax.enable_x64(True): ...")
        self.states = np.full(lanes, TOTAL, np.uint64)
        self.words = np.zeros((lanes, 64), np.uint32)
        self.sizes, self._all = np.zeros(lanes, np.int64), np.arange(lanes)

    def bits(self) -> np.ndarray:
        """Returns the bits that each stack holds, float64 [lanes]."""
        return WORD * self.sizes + np.log2(self.states.astype(float)) - PRECISION

    def empty(self) -> np.ndarray:
        """Returns the lanes whose stacks are empty, as booleans."""
        return (self.sizes == 0) & (self.states == TOTAL)

    def push(self, starts: np.ndarray, counts: np.ndarray, active: np.ndarray) -> None:
        """Pushes n symbols of each active lane, the last first: cumulated counts [n, lanes]."""
        symbols = starts.astype(np.uint64), counts.astype(np.uint64)
        with jax.default_device(_cpu()):
            states, (words, spilled) = _push(self.states, *symbols)
        spilled = np.asarray(spilled)[::-1] & active  # backwards, as they were pushed
        words = np.asarray(words)[::-1]
        self.states = np.where(active, np.asarray(states), self.states)
        self._reserve(int(self.sizes.max(initial=0) + spilled.sum(axis=0).max(initial=0)))
        place = self.sizes + np.cumsum(spilled, axis=0) - 1
        _, lane = np.nonzero(spilled)
        self.words[lane, place[spilled]] = words[spilled]
        self.sizes = self.sizes + spilled.sum(axis=0)

    def pop(self, table: np.ndarray, rows: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Pops n symbols of each active lane and returns them, int32 [n, lanes].

        `table`, uint32 [any, symbols + 1], has in each row counts summed up, from 0 to TOTAL;
        `rows`, [n, lanes], says which row each symbol has. Raises Underflow.
        """
        place = self.sizes - 1 - np.arange(len(rows))[:, None]
        tops = self.words[self._all, np.maximum(place, 0)]
        with jax.default_device(_cpu()):
            (states, used), symbols = _pop(self.states, tops, table, rows.astype(np.int32))
        used = np.asarray(used)
        short = (used > self.sizes) & active
        if short.any():
            raise Underflow(short)
        self.states = np.where(active, np.asarray(states), self.states)
        self.sizes = self.sizes - np.where(active, used, 0)
        return np.asarray(symbols)

    def push_one(self, lane: int, start: int, count: int) -> None:
        """Pushes one symbol onto one stack."""
        state = int(self.states[lane])
        if state >= count << _SPILL:
            self._reserve(int(self.sizes.max()) + 1)
            self.words[lane, self.sizes[lane]] = state & _LOW
            self.sizes[lane] += 1
            state >>= WORD
        self.states[lane] = ((state // count) << PRECISION) + state % count + start

    def top(self, lane: int) -> int:
        """Returns where in [0, TOTAL) the symbol on top lies; `pop_one` then drops it."""
        return int(self.states[lane]) & (TOTAL - 1)

    def pop_one(self, lane: int, start: int, count: int) -> None:
        """Drops the symbol on top. Raises Underflow."""
        state = int(self.states[lane])
        state = count * (state >> PRECISION) + (state & (TOTAL - 1)) - start
        if state <= _LOW and self.sizes[lane]:
            self.sizes[lane] -= 1
            state = state << WORD | int(self.words[lane, self.sizes[lane]])
        if state < TOTAL:
            raise Underflow(self._all == lane)
        self.states[lane] = state

    def scramble(self, n: int, salt: int, active: np.ndarray) -> None:
        """Makes the bits that `n` symbols will be popped from look like chance, by XOR.

        Bits that were pushed under an imperfect model are no fair coins: later levels would cost a
        few per cent more. The sequence is of the stack's size and `salt`, in [0, 2^16); twice is
        not at all. Sizes stay, and for that the state's leading bits.
        """
        count = n // 2 + 1  # words: up to 16 bits a symbol
        place = self.sizes - 1 - np.arange(count)[:, None]
        mask = _random(self.sizes, salt, count + 2) * active
        there = place >= 0
        _, lane = np.nonzero(there)
        self.words[lane, place[there]] ^= mask[2:][there]
        length = np.frexp((self.states >> np.uint64(11)).astype(float))[1] + 11
        kept = np.where(self.sizes > 0, np.maximum(length - _LEADING, 0), 0).astype(np.uint64)
        low = mask[0].astype(np.uint64) << np.uint64(WORD) | mask[1]
        self.states = self.states ^ (low & ((np.uint64(1) << kept) - np.uint64(1)))

    def dump(self, lane: int) -> bytes:
        """Returns a stack as bytes: its words, then its state without leading zeros."""
        state = int(self.states[lane])
        words = self.words[lane, : self.sizes[lane]].astype("<u4").tobytes()
        return words + state.to_bytes(-(-state.bit_length() // 8), "little")

    def load(self, lane: int, content: bytes) -> None:
        """Fills a stack with what `dump` gave. Raises ValueError for bytes that it doesn't give."""
        size = max(len(content) - 5, 0) // 4  # a state has 5 to 8 bytes above words, 4 to 8 alone
        top = content[4 * size :]
        if int.from_bytes(top, "little") < TOTAL or not top[-1]:
            raise ValueError("no stack of bits")
        self._reserve(size)
        self.words[lane, :size] = np.frombuffer(content, "<u4", size)
        self.sizes[lane], self.states[lane] = size, int.from_bytes(top, "little")

    def _reserve(self, size: int) -> None:
        """Makes room for so many words in each lane; what no lane uses takes no memory."""
        if size > (before := self.words.shape[1]):
            old, self.words = self.words, np.zeros((len(self.words), max(size, 2 * before)), "u4")
            self.words[:, :before] = old


def _random(sizes: np.ndarray, salt: int, count: int) -> np.ndarray:
    """Returns uint32 [count, lanes], each a SplitMix64 (Steele et al. 2014) of size and salt."""
    at = sizes.astype(np.uint64) << np.uint64(32) | np.uint64(salt << 16)
    x = _mixed(at) + np.arange(1, count + 1, dtype=np.uint64)[:, None] * np.uint64(_GOLDEN)
    return (_mixed(x) >> np.uint64(32)).astype(np.uint32)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _cpu() -> jax.Device:
    """Returns a CPU if JAX has one, as a loop over symbols is slow on an accelerator."""
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.devices()[0]


@jax.jit
def _push(states: jax.Array, starts: jax.Array, counts: jax.Array) -> Any:
    def one(state: jax.Array, symbol: tuple[jax.Array, jax.Array]) -> tuple:
        start, count = symbol
        spilled = state >= count << _SPILL
        word = (state & _LOW).astype(jnp.uint32)
        state = jnp.where(spilled, state >> WORD, state)
        return ((state // count) << PRECISION) + state % count + start, (word, spilled)

    return jax.lax.scan(one, states, (starts, counts), reverse=True)


@jax.jit
def _pop(states: jax.Array, tops: jax.Array, table: jax.Array, rows: jax.Array) -> Any:
    width = table.shape[1] - 1
    flat, lane = table.reshape(-1), jnp.arange(len(states))

    def one(carry: tuple[jax.Array, jax.Array], row: jax.Array) -> tuple:
        state, used = carry
        slot = (state & (TOTAL - 1)).astype(jnp.uint32)
        first = row * (width + 1)
        found = jnp.zeros_like(row)
        for bit in reversed(range((width - 1).bit_length())):  # the last with start <= slot
            further = jnp.minimum(found + (1 << bit), width - 1)
            found = jnp.where(flat[first + further] <= slot, further, found)
        start = flat[first + found]
        count = (flat[first + found + 1] - start).astype(jnp.uint64)
        state = count * (state >> PRECISION) + (slot - start).astype(jnp.uint64)
        short = state <= _LOW
        state = jnp.where(short, state << WORD | tops[used, lane].astype(jnp.uint64), state)
        return (state, used + short), found

    return jax.lax.scan(one, (states, jnp.zeros_like(rows[0])), rows)
