"""Makes bits look like chance before noise is popped from them.

Bits that were pushed under an imperfect model are no fair coins, and noise popped from them is none
either: later levels cost a few per cent more. XOR with a pseudorandom sequence mends that.
"""

import numpy as np

from vdm_jax.compression.ans import WORD, Stacks

__all__ = ["scramble"]

_LEADING = 8
_GOLDEN = 0x9E3779B97F4A7C15


def scramble(stacks: Stacks, n: int, salt: int, active: np.ndarray) -> None:
    """Change what `n` symbols will be popped from, in `active` lanes; twice is not at all.

    The sequence is of a stack's size and `salt`, in [0, 2^16). No size changes: of the state the
    leading 8 bits stay, because to make those random too would lengthen it, by a hundredth of a bit
    a level.
    """
    count = n // 2 + 1  # words: up to 16 bits a symbol
    place = stacks.sizes - 1 - np.arange(count)[:, None]
    mask = _random(stacks.sizes, salt, count + 2) * active
    there = place >= 0
    _, lane = np.nonzero(there)
    stacks.words[lane, place[there]] ^= mask[2:][there]
    length = np.frexp((stacks.states >> np.uint64(11)).astype(float))[1] + 11
    kept = np.where(stacks.sizes > 0, np.maximum(length - _LEADING, 0), 0).astype(np.uint64)
    low = mask[0].astype(np.uint64) << np.uint64(WORD) | mask[1]
    stacks.states = stacks.states ^ (low & ((np.uint64(1) << kept) - np.uint64(1)))


def _random(sizes: np.ndarray, salt: int, count: int) -> np.ndarray:
    """uint32 [count, lanes], each a SplitMix64 (Steele et al. 2014) of size, salt and number."""
    at = sizes.astype(np.uint64) << np.uint64(32) | np.uint64(salt << 16)
    x = _mixed(at) + np.arange(1, count + 1, dtype=np.uint64)[:, None] * np.uint64(_GOLDEN)
    return (_mixed(x) >> np.uint64(32)).astype(np.uint32)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
