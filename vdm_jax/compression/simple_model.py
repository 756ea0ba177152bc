"""A simple model of images, for the first of each stack: they are the bits that the others borrow.

Each pixel is predicted from those to its left and above by the median edge detector of LOCO-I
(Weinberger et al. 2000), and by how far that was off in the channel before. Its probabilities are
two-sided geometric about the prediction, the wider the more the neighbours were off, mixed with how
often each level came before. All in whole numbers.
"""

import functools
from collections.abc import Iterator

import numpy as np

from vdm_jax.compression.ans import TOTAL, Stacks

__all__ = ["pop", "push"]

_PEAK = 1 << 20
_WIDTH_PARTS = 8


def push(stacks: Stacks, lane: int, images: np.ndarray, levels: int) -> None:
    """Pushes integers [n, height, width, channels] onto one stack."""
    pixels = _Pixels(images.shape, levels)
    symbols = []
    for counts, value in zip(pixels, images.reshape(-1).tolist(), strict=True):
        symbols.append((int(counts[value]), int(counts[value + 1] - counts[value])))
        pixels.found(value)
    for start, count in reversed(symbols):
        stacks.push_one(lane, start, count)


def pop(stacks: Stacks, lane: int, shape: tuple[int, ...], levels: int) -> np.ndarray:
    """Undoes `push` and returns its images, int64 [n, height, width, channels]."""
    pixels = _Pixels(shape, levels)
    for counts in pixels:
        value = int(np.searchsorted(counts, stacks.top(lane), side="right")) - 1
        stacks.pop_one(lane, int(counts[value]), int(counts[value + 1] - counts[value]))
        pixels.found(value)
    return pixels.images


class _Pixels:
    """Goes over all pixels; of each gives the cumulated counts, then must be told the value."""

    def __init__(self, shape: tuple[int, ...], levels: int) -> None:
        self.images = np.zeros(shape, np.int64)
        self._levels = levels
        # How often each level came before where the guess was 0, low or high.
        self._seen = np.ones((3, levels), np.int64)
        # What part of the probability is that: few levels are soon known.
        before = (TOTAL - levels) * min(13, 224 // levels) // 16
        self._shares = TOTAL - levels - before, before
        self._at, self._guess = 0, 0
        self._off = np.zeros(shape, np.int64)  # how far predictions were off
        self._edges = np.zeros(shape, np.int64)  # what the edge detector said

    def __iter__(self) -> Iterator[np.ndarray]:
        for at in np.ndindex(self.images.shape):
            self._predict(*at)
            yield self._counts(self._guess, self._width(*at))
            self._at += 1

    def found(self, value: int) -> None:
        """Takes the value of the pixel that was asked for last."""
        self.images.reshape(-1)[self._at] = value
        self._off.reshape(-1)[self._at] = value - self._guess
        self._seen[self._context(), value] += 2

    def _context(self) -> int:
        return 0 if self._guess == 0 else 1 if 2 * self._guess < self._levels else 2

    def _predict(self, n: int, y: int, x: int, c: int) -> None:
        image = self.images[n, :, :, c]
        left = int(image[y, x - 1]) if x else int(image[y - 1, 0]) if y else self._levels // 2
        above = int(image[y - 1, x]) if y else left
        corner = int(image[y - 1, x - 1]) if x and y else above
        low, high = min(left, above), max(left, above)
        edge = low if corner >= high else high if corner <= low else left + above - corner
        self._edges[n, y, x, c] = edge
        if c:
            edge += int(self.images[n, y, x, c - 1] - self._edges[n, y, x, c - 1])
        self._guess = min(max(edge, 0), self._levels - 1)

    def _width(self, n: int, y: int, x: int, c: int) -> int:
        off = self._off[n]
        left = abs(int(off[y, x - 1, c])) if x else abs(int(off[y - 1, 0, c])) if y else None
        left = self._levels // 8 if left is None else left
        above = abs(int(off[y - 1, x, c])) if y else left
        total = left + above + (abs(int(off[y, x, c - 1])) if c else 0)
        return _WIDTH_PARTS * total // (3 + (c > 0)) + _WIDTH_PARTS // 2

    def _counts(self, guess: int, width: int) -> np.ndarray:
        geometric = _geometric(width, self._levels)[self._levels - 1 - guess :][: self._levels + 1]
        geometric = geometric - geometric[0]
        seen = np.concatenate([[0], np.cumsum(self._seen[self._context()])])
        counts = np.arange(self._levels + 1)
        for weights, share in zip((geometric, seen), self._shares, strict=True):
            counts += weights * share // weights[-1]
        counts[-1] = TOTAL
        return counts


@functools.cache
def _geometric(width: int, levels: int) -> np.ndarray:
    """Returns cumulated weights of the distances 1 - levels, ..., levels - 1: int64 [2 levels]."""
    weights = [_PEAK]
    for _ in range(levels - 1):
        weights.append(max(weights[-1] * width // (width + _WIDTH_PARTS), 1))
    return np.concatenate([[0], np.cumsum(weights[:0:-1] + weights)])
