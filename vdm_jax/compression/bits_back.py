"""Images into stacks of bits and out again, by bits-back coding along a VDM's chain.

To encode an image: pop z_0 ~ q(z_0|x), push x under p(x|z_0); then for each level pop
z_i ~ q(z_i|z_{i-1}) and push z_{i-1} under p(z_{i-1}|z_i); last push z_T under the prior (Townsend
et al. 2019, arXiv 1901.04866; one level after the other as Kingma et al. 2019, arXiv 1905.06845).
What is popped comes back when the image is decoded, so that on average a stack grows by the bound
of T steps (VDM eq. 11), and never more than two levels are borrowed at a time.

Lanes are coded in step, with one call of the network for all. Encoding and decoding call it with
the same numbers at the same places of the same batch; its noise is rounded to `chain.EPS_GRID`,
and behind that come only whole numbers and single IEEE operations.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vdm_jax.compression import tables
from vdm_jax.compression.ans import PRECISION, Stacks
from vdm_jax.compression.chain import EPS_GRID, Chain
from vdm_jax.compression.file import VdmzError
from vdm_jax.compression.tables import FRACTIONS, GaussianTable
from vdm_jax.errors import UserError

__all__ = ["Coder", "Noise", "Observe"]

_HALF = 16  # bits of a number far off, or of a level, that are pushed at a time
_UNIT = 1 << (PRECISION - _HALF)
_MOST_EPS = 1 << 20

Observe = Callable[[int, np.ndarray, np.ndarray | None, np.ndarray | None], None]
"""Is told of each level 0, ..., T its number, z_i, and what the network said of it (but of z_0)."""

Noise = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray | None]]
"""The network: z_i, float64 [lanes, dims], and i in 1, ..., T -> eps_hat and share (or None), each
like z_i. Must be a function of these two alone, to the last bit."""


class Coder(NamedTuple):
    """Codes one image of each lane at a time."""

    chain: Chain
    """Levels and tables."""
    noise: Noise
    """Network."""

    def encode(
        self,
        stacks: Stacks,
        images: np.ndarray,
        active: np.ndarray,
        observe: Observe | None = None,
    ) -> None:
        """Pushes an image of each active lane, integers [lanes, dims].

        Raises Underflow if a stack has too few bits to begin with, UserError if the network
        returns what is no number.
        """
        chain, x = self.chain, images.T.astype(np.int64)
        z = self._draw(stacks, 0, chain.values[x], active)
        if observe is not None:
            observe(0, (z * chain.grids[0]).T, None, None)
        self._push_pixels(stacks, x, z, active)
        for i in range(1, chain.num_steps + 1):
            z_next = self._draw(stacks, i, z, active)
            means, rows = self._reverse(z_next, i, observe)
            _push(stacks, chain.decoders[i - 1], z, means, rows, active)
            z = z_next
        _push(stacks, chain.prior, z, np.zeros(z.shape), 0, active)

    def decode(self, stacks: Stacks, dims: int, active: np.ndarray) -> np.ndarray:
        """Undoes `encode` and returns its images, int64 [lanes, dims], zeros where not active."""
        chain, shape = self.chain, (dims, len(active))
        z = _pop(stacks, chain.prior, np.zeros(shape), 0, active)
        for i in range(chain.num_steps, 0, -1):
            means, rows = self._reverse(z, i)
            z_before = _pop(stacks, chain.decoders[i - 1], means, rows, active)
            self._return(stacks, i, z, z_before, active)
            z = z_before
        x = self._pop_pixels(stacks, z, active)
        self._return(stacks, 0, z, chain.values[x], active)
        return x.T

    def _draw(self, stacks: Stacks, i: int, before: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Returns z_i ~ q(z_i|z_{i-1}), or of x for i = 0.

        In reverse, so that no element's noise is made of the bits that the same element of the
        level before went into last.
        """
        stacks.scramble(len(before), i, active)
        means = self.chain.forward[i] * before[::-1]
        return _pop(stacks, self.chain.encoders[i], means, 0, active)[::-1]

    def _return(
        self, stacks: Stacks, i: int, z: np.ndarray, before: np.ndarray, active: np.ndarray
    ) -> None:
        """Undoes `_draw`."""
        means = self.chain.forward[i] * before[::-1]
        _push(stacks, self.chain.encoders[i], z[::-1], means, 0, active)
        stacks.scramble(len(z), i, active)

    def _reverse(
        self, z: np.ndarray, i: int, observe: Observe | None = None
    ) -> tuple[np.ndarray, np.ndarray | int]:
        """Returns the means of p(z_{i-1}|z_i), and the rows at which their widths begin."""
        chain = self.chain
        values = (z * chain.grids[i]).T
        eps_hat, share = self.noise(values, i)
        if observe is not None:
            observe(i, values, eps_hat, share)
        if not np.all(np.isfinite(eps_hat)) or not (share is None or np.all(np.isfinite(share))):
            raise UserError(f"the network's output isn't finite at level {i} of {chain.num_steps}")
        n = np.clip(np.rint(eps_hat.T / EPS_GRID), -_MOST_EPS, _MOST_EPS)
        means = chain.of_z[i - 1] * z + chain.of_eps[i - 1] * n
        if share is None:
            return means, 0
        widths = chain.shares[i - 1]
        return means, np.rint(np.clip(share.T, 0.0, 1.0) * (widths - 1)).astype(int) * FRACTIONS

    def _push_pixels(
        self, stacks: Stacks, x: np.ndarray, z_0: np.ndarray, active: np.ndarray
    ) -> None:
        table = self.chain.pixels
        rows, other = table.rows(z_0), table.counts.shape[1] - 2
        symbols = x - table.levels[rows]
        far = (symbols < 0) | (symbols >= other)
        _push_far(stacks, x, far & active, 1)
        _push_symbols(stacks, table.counts, rows, np.where(far, other, symbols), active)

    def _pop_pixels(self, stacks: Stacks, z_0: np.ndarray, active: np.ndarray) -> np.ndarray:
        table = self.chain.pixels
        rows, other = table.rows(z_0), table.counts.shape[1] - 2
        symbols = stacks.pop(table.counts, rows, active)
        x = table.levels[rows] + symbols
        x = _pop_far(stacks, x, (symbols == other) & active, 1)
        if not np.all((x >= 0) & (x < len(self.chain.values)) | ~active):
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
    """Pushes numbers [n, lanes] under normal distributions; `rows` is added to their means' rows."""
    whole, fraction = tables.split(means)
    symbols = numbers - whole + table.span
    far = (symbols < 0) | (symbols > 2 * table.span)
    if np.any(far & active):
        if not table.escape:
            raise VdmzError("the payload is damaged: a latent lies where none can")
        _push_far(stacks, numbers, far & active, 2)
    last = table.counts.shape[1] - 2
    _push_symbols(stacks, table.counts, rows + fraction, np.where(far, last, symbols), active)


def _pop(
    stacks: Stacks,
    table: GaussianTable,
    means: np.ndarray,
    rows: np.ndarray | int,
    active: np.ndarray,
) -> np.ndarray:
    """Undoes `_push` and returns its numbers, int64 [n, lanes], zeros where not active."""
    whole, fraction = tables.split(means)
    symbols = stacks.pop(table.counts, rows + fraction, active)
    numbers = whole - table.span + symbols
    if table.escape:
        far = (symbols == 2 * table.span + 1) & active
        numbers = _pop_far(stacks, numbers, far, 2)
        numbers = np.where(far, numbers.astype(np.int32), numbers)  # two's complement
    return np.where(active, numbers, 0)


def _push_symbols(
    stacks: Stacks, counts: np.ndarray, rows: np.ndarray, symbols: np.ndarray, active: np.ndarray
) -> None:
    symbols = np.clip(symbols, 0, counts.shape[1] - 2)  # lanes that aren't active hold anything
    starts = counts[rows, symbols]
    stacks.push(starts, counts[rows, symbols + 1] - starts, active)


def _push_far(stacks: Stacks, numbers: np.ndarray, far: np.ndarray, halves: int) -> None:
    """Pushes the few numbers [n, lanes] that have no symbol, in 16 bits each or twice that."""
    for k, lane in np.argwhere(far)[::-1].tolist():
        for half in range(halves):
            value = int(numbers[k, lane]) >> (_HALF * half) & ((1 << _HALF) - 1)
            stacks.push_one(lane, value * _UNIT, _UNIT)


def _pop_far(stacks: Stacks, numbers: np.ndarray, far: np.ndarray, halves: int) -> np.ndarray:
    """Returns `numbers` with those that `_push_far` left."""
    numbers = numbers.copy()
    for k, lane in np.argwhere(far).tolist():
        number = 0
        for _ in range(halves):
            value = stacks.top(lane) // _UNIT
            stacks.pop_one(lane, value * _UNIT, _UNIT)
            number = number << _HALF | value
        numbers[k, lane] = number
    return numbers
