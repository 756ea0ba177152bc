"""A simple model of images, for the first of each stack: they are the bits that the others borrow.

Each pixel is predicted by the median edge detector of LOCO-I (Weinberger et al. 2000), and by how
far that was off in the channel before. Its probabilities are two-sided geometric, the wider the
more the neighbours were off, mixed with how often each level came before. All in whole numbers.
"""

import functools
from collections.abc import Generator

import numpy as np

from vdm_jax.compression.ans import TOTAL, Stacks

_PEAK, _WIDTH_PARTS = 1 << 20, 8


def push(stacks: Stacks, lane: int, images: np.ndarray, levels: int) -> None:
    """Pushes integers [n, height, width, channels] onto one stack."""
    model, symbols = _model(images.shape, levels), []
    counts = next(model)
    for value in images.reshape(-1).tolist():
        symbols.append((int(counts[value]), int(counts[value + 1] - counts[value])))
        counts = model.send(value)
    for start, count in reversed(symbols):
        stacks.push_one(lane, start, count)


def pop(stacks: Stacks, lane: int, shape: tuple[int, ...], levels: int) -> np.ndarray:
    """Undoes `push` and returns its images, int64 [n, height, width, channels]."""
    model, images = _model(shape, levels), np.zeros(shape, np.int64)
    counts = next(model)
    for at in np.ndindex(shape):
        value = int(np.searchsorted(counts, stacks.top(lane), side="right")) - 1
        stacks.pop_one(lane, int(counts[value]), int(counts[value + 1] - counts[value]))
        images[at] = value
        counts = model.send(value)
    return images


def _model(shape: tuple[int, ...], levels: int) -> Generator[np.ndarray, int, None]:
    """Yields the cumulated counts of each pixel, and is sent its value; once more at the end."""
    _, height, width, channels = shape
    values = np.full((height + 1, width, channels), levels // 2)  # row -1 is above the first pixel
    edges, off = np.zeros_like(values), np.full_like(values, levels // 8)
    seen = np.ones((3, levels), np.int64)  # of each level, where the guess was 0, low or high
    for _, y, x, c in np.ndindex(shape):
        at, left = (y, x), (y, x - 1) if x else (y - 1, 0)
        above = (y - 1, x) if y else left
        corner = (y - 1, x - 1) if x and y else above
        low, high = sorted((int(values[*left, c]), int(values[*above, c])))
        edge = low + high - min(max(int(values[*corner, c]), low), high)  # the median
        guess = edge + (int(values[*at, c - 1] - edges[*at, c - 1]) if c else 0)
        guess = min(max(guess, 0), levels - 1)
        total = int(abs(off[*left, c]) + abs(off[*above, c]) + (abs(off[*at, c - 1]) if c else 0))
        spread = _WIDTH_PARTS * total // (3 + (c > 0)) + _WIDTH_PARTS // 2
        context = 0 if guess == 0 else 1 if 2 * guess < levels else 2
        value = yield _counts(guess, spread, seen[context])
        values[*at, c], edges[*at, c], off[*at, c] = value, edge, value - guess
        seen[context, value] += 2
    yield seen[0]


def _counts(guess: int, spread: int, seen: np.ndarray) -> np.ndarray:
    """Returns counts of TOTAL for all levels, cumulated: int64 [levels + 1]."""
    levels = len(seen)
    geometric = _geometric(spread, levels)[levels - 1 - guess :][: levels + 1]
    before = (TOTAL - levels) * min(13, 224 // levels) // 16  # few levels are soon known
    counts = np.arange(levels + 1)
    for weights, share in (
        (geometric - geometric[0], TOTAL - levels - before),
        (np.concatenate([[0], np.cumsum(seen)]), before),
    ):
        counts += weights * share // weights[-1]
    counts[-1] = TOTAL
    return counts


@functools.cache
def _geometric(spread: int, levels: int) -> np.ndarray:
    """Returns cumulated weights of the distances 1 - levels, ..., levels - 1: int64 [2 levels]."""
    weights = [_PEAK]
    for _ in range(levels - 1):
        weights.append(max(weights[-1] * spread // (spread + _WIDTH_PARTS), 1))
    return np.concatenate([[0], np.cumsum(weights[:0:-1] + weights)])
