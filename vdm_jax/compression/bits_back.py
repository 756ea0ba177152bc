"""Images into stacks of bits and out again, by bits-back coding along a VDM's chain.

To encode an image: pop z_0 ~ q(z_0|x), push x under p(x|z_0); then for each level pop
z_i ~ q(z_i|z_{i-1}) and push z_{i-1} under p(z_{i-1}|z_i); last push z_T under the prior (Townsend
et al. 2019, arXiv 1901.04866; one level after the other as Kingma et al. 2019, arXiv 1905.06845).
What is popped comes back when the image is decoded, so that on average a stack grows by the bound
of T steps (VDM eq. 11), and never more than two levels are borrowed at a time.

Lanes are coded in step, with one call of the network for all. Encoding and decoding call it with
the same numbers at the same places of the same batch; its noise is rounded to `ladder.EPS_GRID`,
and behind that come only whole numbers and single IEEE operations.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from vdm_jax.compression import tables
from vdm_jax.compression.ans import PRECISION, Stacks
from vdm_jax.compression.errors import VdmzError
from vdm_jax.compression.ladder import EPS_GRID, Ladder
from vdm_jax.compression.scramble import scramble
from vdm_jax.compression.tables import FRACTIONS, GaussianTable

__all__ = ["Coder", "Noise", "Observe"]

_HALF = 16  # bits of a number far off, or of a level, that are pushed at a time
_MOST_EPS = 1 << 20

Observe = Callable[[int, np.ndarray, np.ndarray | None, np.ndarray | None], None]
"""Is told of each level 0, ..., T its number, z_i, and what the network said of it (but of z_0)."""


class Noise(Protocol):
    """The network: eps_hat of z_i."""

    def __call__(self, z: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray | None]:
        """z float64 [lanes, dims], level in 1, ..., T -> eps_hat and share (or None), as z.

        Must be a function of z and level alone, to the last bit.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Coder:
    """Codes one image of each lane at a time.

    Attributes:
      ladder: the chain.
      noise: the network.
    """

    ladder: Ladder
    noise: Noise

    def encode(
        self,
        stacks: Stacks,
        images: np.ndarray,
        active: np.ndarray,
        observe: Observe | None = None,
    ) -> None:
        """Push an image of each active lane, integers [lanes, dims].

        Raises Underflow if a stack has too few bits to begin with, ValueError if the network
        returns what is no number.
        """
        ladder, x = self.ladder, images.T.astype(np.int64)
        z = self._draw(stacks, 0, ladder.values[x], active)
        if observe is not None:
            observe(0, (z * ladder.grids[0]).T, None, None)
        self._push_pixels(stacks, x, z, active)
        for i in range(1, ladder.num_steps + 1):
            z_next = self._draw(stacks, i, z, active)
            means, rows = self._reverse(z_next, i, observe)
            _push(stacks, ladder.decoders[i - 1], z, means, rows, active)
            z = z_next
        _push(stacks, ladder.prior, z, np.zeros(z.shape), 0, active)

    def decode(self, stacks: Stacks, dims: int, active: np.ndarray) -> np.ndarray:
        """The inverse of `encode`: images int64 [lanes, dims], zeros where not active."""
        ladder, shape = self.ladder, (dims, len(active))
        z = _pop(stacks, ladder.prior, np.zeros(shape), 0, active)
        for i in range(ladder.num_steps, 0, -1):
            means, rows = self._reverse(z, i)
            z_before = _pop(stacks, ladder.decoders[i - 1], means, rows, active)
            self._return(stacks, i, z, z_before, active)
            z = z_before
        x = self._pop_pixels(stacks, z, active)
        self._return(stacks, 0, z, ladder.values[x], active)
        return x.T

    def _draw(self, stacks: Stacks, i: int, before: np.ndarray, active: np.ndarray) -> np.ndarray:
        """z_i ~ q(z_i|z_{i-1}), or of x for i = 0.

        In reverse, so that no element's noise is made of the bits that the same element of the
        level before went into last.
        """
        scramble(stacks, len(before), i, active)
        means = self.ladder.forward[i] * before[::-1]
        return _pop(stacks, self.ladder.encoders[i], means, 0, active)[::-1]

    def _return(
        self, stacks: Stacks, i: int, z: np.ndarray, before: np.ndarray, active: np.ndarray
    ) -> None:
        """The inverse of `_draw`."""
        means = self.ladder.forward[i] * before[::-1]
        _push(stacks, self.ladder.encoders[i], z[::-1], means, 0, active)
        scramble(stacks, len(z), i, active)

    def _reverse(
        self, z: np.ndarray, i: int, observe: Observe | None = None
    ) -> tuple[np.ndarray, np.ndarray | int]:
        """The means of p(z_{i-1}|z_i), and the rows at which their widths begin."""
        ladder = self.ladder
        values = (z * ladder.grids[i]).T
        eps_hat, share = self.noise(values, i)
        if observe is not None:
            observe(i, values, eps_hat, share)
        if not np.all(np.isfinite(eps_hat)) or not (share is None or np.all(np.isfinite(share))):
            raise ValueError(
                f"the network's output isn't finite at level {i} of {len(ladder.of_z)}"
            )
        n = np.clip(np.rint(eps_hat.T / EPS_GRID), -_MOST_EPS, _MOST_EPS)
        means = ladder.of_z[i - 1] * z + ladder.of_eps[i - 1] * n
        if share is None:
            return means, 0
        widths = ladder.shares[i - 1]
        return means, np.rint(np.clip(share.T, 0.0, 1.0) * (widths - 1)).astype(int) * FRACTIONS

    def _push_pixels(
        self, stacks: Stacks, x: np.ndarray, z_0: np.ndarray, active: np.ndarray
    ) -> None:
        table = self.ladder.pixels
        rows, other = table.rows(z_0), table.counts.shape[1] - 2
        symbols = x - table.levels[rows]
        far = (symbols < 0) | (symbols >= other)
        _push_far(stacks, x, far & active, 1)
        _push_symbols(stacks, table.counts, rows, np.where(far, other, symbols), active)

    def _pop_pixels(self, stacks: Stacks, z_0: np.ndarray, active: np.ndarray) -> np.ndarray:
        table = self.ladder.pixels
        rows, other = table.rows(z_0), table.counts.shape[1] - 2
        symbols = stacks.pop(table.counts, rows, active)
        x = table.levels[rows] + symbols
        x = _pop_far(stacks, x, (symbols == other) & active, 1)
        if not np.all((x >= 0) & (x < len(self.ladder.values)) | ~active):
            raise VdmzError("the payload is damaged: it decodes to levels that there are not")
        return np.where(active, x, 0)


# ---- numbers on a grid ----


def _push(
    stacks: Stacks,
    table: GaussianTable,
    numbers: np.ndarray,
    means: np.ndarray,
    rows: np.ndarray | int,
    active: np.ndarray,
) -> None:
    """Numbers [n, lanes] under normal distributions of these means; `rows` is added to theirs."""
    whole, fraction = tables.split(means)
    symbols = numbers - whole + table.span
    far = (symbols < 0) | (symbols > 2 * table.span)
    if np.any(far & active):
        if not table.escape:
            raise VdmzError("the payload is damaged: a latent lies where none can")
        _push_far(stacks, numbers & _mask(2), far & active, 2)
    last = table.counts.shape[1] - 2
    _push_symbols(stacks, table.counts, rows + fraction, np.where(far, last, symbols), active)


def _pop(
    stacks: Stacks,
    table: GaussianTable,
    means: np.ndarray,
    rows: np.ndarray | int,
    active: np.ndarray,
) -> np.ndarray:
    """The inverse of `_push`: int64 [n, lanes], zeros where not active."""
    whole, fraction = tables.split(means)
    symbols = stacks.pop(table.counts, rows + fraction, active)
    numbers = whole - table.span + symbols
    if table.escape:
        far = (symbols == 2 * table.span + 1) & active
        if np.any(far):
            numbers = _pop_far(stacks, numbers, far, 2)
            numbers = np.where(far & (numbers > _mask(2) >> 1), numbers - _mask(2) - 1, numbers)
    return np.where(active, numbers, 0)


def _push_symbols(
    stacks: Stacks, counts: np.ndarray, rows: np.ndarray, symbols: np.ndarray, active: np.ndarray
) -> None:
    symbols = np.clip(symbols, 0, counts.shape[1] - 2)  # lanes that aren't active hold anything
    starts = counts[rows, symbols]
    stacks.push(starts, counts[rows, symbols + 1] - starts, active)


def _push_far(stacks: Stacks, numbers: np.ndarray, far: np.ndarray, halves: int) -> None:
    """The few numbers [n, lanes] that have no symbol, in 16 bits each or twice that."""
    for k, lane in np.argwhere(far)[::-1].tolist():
        for half in range(halves):
            value = int(numbers[k, lane]) >> (_HALF * half) & _mask(1)
            stacks.push_one(lane, value << (PRECISION - _HALF), 1 << (PRECISION - _HALF))


def _pop_far(stacks: Stacks, numbers: np.ndarray, far: np.ndarray, halves: int) -> np.ndarray:
    """`numbers` with those that `_push_far` left."""
    numbers = numbers.copy()
    for k, lane in np.argwhere(far).tolist():
        number = 0
        for _ in range(halves):
            value = stacks.top(lane) >> (PRECISION - _HALF)
            stacks.pop_one(lane, value << (PRECISION - _HALF), 1 << (PRECISION - _HALF))
            number = number << _HALF | value
        numbers[k, lane] = number
    return numbers


def _mask(halves: int) -> int:
    return (1 << (_HALF * halves)) - 1
