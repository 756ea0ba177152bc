"""Images into stacks of bits and out again, by bits-back coding along a VDM's chain.

To encode an image: pop z_0 ~ q(z_0|x), push x under p(x|z_0); then for each level pop
z_i ~ q(z_i|z_{i-1}) and push z_{i-1} under p(z_{i-1}|z_i); last push z_T under the prior (Townsend
et al. 2019, arXiv 1901.04866; one level after the other as Kingma et al. 2019, arXiv 1905.06845).
What is popped comes back when the image is decoded, so that on average a stack grows by the bound
of T steps (VDM eq. 11). Lanes are coded in step: encoding and decoding call the network with the
same numbers at the same places of the same batch; its noise is rounded to `chain.EPS_GRID`, and
behind that come only whole numbers and single IEEE operations.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vdm_jax.compression import tables
from vdm_jax.compression.ans import PRECISION, Stacks
from vdm_jax.compression.chain import EPS_GRID, Chain
from vdm_jax.compression.file import VdmzError
from vdm_jax.compression.tables import FRACTIONS, GaussianTable, PixelTable
from vdm_jax.errors import UserError

_HALF = 16  # bits of a number without a symbol that are pushed at a time
_UNIT = 1 << (PRECISION - _HALF)
_MOST_EPS = 1 << 20

Observe = Callable[[int, np.ndarray, np.ndarray | None, np.ndarray | None], None]
"""Is told of each level 0, ..., T its number, z_i, and what the network said of it (but of z_0)."""

Noise = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray | None]]
"""The network: z_i, float64 [lanes, dims], and i in 1, ..., T -> eps_hat and share (or None), each
like z_i. Must be a function of these two and the images chosen alone, to the last bit."""


class Coder(NamedTuple):
    """Codes one image of each lane at a time."""

    chain: Chain
    noise: Noise
    choose: Callable[[np.ndarray], None] = lambda images: None
    """Is told the images in the lanes, by number, before they are coded."""

    def encode(
        self, stacks: Stacks, images: np.ndarray, active: np.ndarray, observe: Observe
    ) -> None:
        """Pushes an image of each active lane, integers [lanes, dims].

        Raises Underflow for a stack of too few bits, UserError for a network that isn't finite.
        """
        chain, x = self.chain, images.T.astype(np.int64)
        z = self._draw(stacks, 0, chain.data(x), active)
        observe(0, (z * chain.grids[0]).T, None, None)
        _push(stacks, _pixels(chain.pixels, chain.rescaled(z)), x, active)
        for i in range(1, chain.num_steps + 1):
            z_next = self._draw(stacks, i, z, active)
            _push(stacks, self._reverse(z_next, i, observe), z, active)
            z = z_next
        _push(stacks, self._prior(*z.shape), z, active)

    def decode(self, stacks: Stacks, dims: int, active: np.ndarray) -> np.ndarray:
        """Undoes `encode` and returns its images, int64 [lanes, dims], zeros where not active."""
        chain = self.chain
        z = _pop(stacks, self._prior(dims, len(active)), active)
        for i in range(chain.num_steps, 0, -1):
            z_before = _pop(stacks, self._reverse(z, i), active)
            self._return(stacks, i, z, z_before, active)
            z = z_before
        x = _pop(stacks, _pixels(chain.pixels, chain.rescaled(z)), active)
        if not np.all((x >= 0) & (x < len(chain.values))):
            raise VdmzError("the payload is damaged: it decodes to levels that there are not")
        self._return(stacks, 0, z, chain.data(x), active)
        return x.T

    def _draw(self, stacks: Stacks, i: int, before: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Returns z_i ~ q(z_i|z_{i-1}), or of x for i = 0."""
        stacks.scramble(len(before), i, active)
        # In reverse, so that no element's noise is made of the bits that its own went into last.
        return _pop(stacks, self._forward(i, before), active)[::-1]

    def _return(
        self, stacks: Stacks, i: int, z: np.ndarray, before: np.ndarray, active: np.ndarray
    ) -> None:
        """Undoes `_draw`."""
        _push(stacks, self._forward(i, before), z[::-1], active)
        stacks.scramble(len(z), i, active)

    def _forward(self, i: int, before: np.ndarray) -> "_Symbols":
        means = (self.chain.forward[i] * before)[::-1]
        return _normal(self.chain.encoders[i], means, self.chain.group[::-1] * FRACTIONS)

    def _prior(self, dims: int, lanes: int) -> "_Symbols":
        means = np.zeros((dims, lanes))
        return _normal(self.chain.prior, means, self.chain.group * FRACTIONS)

    def _reverse(self, z: np.ndarray, i: int, observe: Observe | None = None) -> "_Symbols":
        """Returns p(z_{i-1}|z_i)."""
        chain = self.chain
        values = (z * chain.grids[i]).T
        eps_hat, share = self.noise(values, i)
        if observe is not None:
            observe(i, values, eps_hat, share)
        if not np.all(np.isfinite(eps_hat)) or not (share is None or np.all(np.isfinite(share))):
            raise UserError(f"the network's output isn't finite at level {i} of {chain.num_steps}")
        n = np.clip(np.rint(eps_hat.T / EPS_GRID), -_MOST_EPS, _MOST_EPS)
        means = chain.of_z[i - 1] * z + chain.of_eps[i - 1] * n
        widths = 0 if share is None else np.clip(share.T, 0.0, 1.0) * (chain.shares[i - 1] - 1)
        rows = (np.rint(widths).astype(int) + chain.group * chain.shares[i - 1]) * FRACTIONS
        return _normal(chain.decoders[i - 1], means, rows)


class _Symbols(NamedTuple):
    """The distributions of numbers [n, lanes], as rows of a table of counts."""

    counts: np.ndarray
    rows: np.ndarray
    first: np.ndarray  # numbers that their first symbols stand for
    halves: int  # unless 0, the last symbol is any other number, of so many times 16 bits


def _normal(table: GaussianTable, means: np.ndarray, rows: np.ndarray) -> _Symbols:
    whole, fraction = tables.split(means)
    return _Symbols(table.counts, rows + fraction, whole - table.span, 2 * table.escape)


def _pixels(table: PixelTable, z_0: np.ndarray) -> _Symbols:
    rows = np.clip(z_0 - table.first, 0, -2 * table.first) + table.start
    return _Symbols(table.counts, rows, table.levels[rows], 1)


def _push(stacks: Stacks, of: _Symbols, numbers: np.ndarray, active: np.ndarray) -> None:
    """Pushes numbers [n, lanes]."""
    symbols, last = numbers - of.first, of.counts.shape[1] - 2
    far = (symbols < 0) | (symbols > last - (of.halves > 0))
    if not of.halves and np.any(far & active):
        raise VdmzError("the payload is damaged: a latent lies where none can")
    for k, lane in np.argwhere(far & active)[::-1].tolist():
        for half in range(of.halves):
            value = int(numbers[k, lane]) >> (_HALF * half) & ((1 << _HALF) - 1)
            stacks.push_one(lane, value * _UNIT, _UNIT)
    symbols = np.where(far, last, symbols)
    starts = of.counts[of.rows, symbols]
    stacks.push(starts, of.counts[of.rows, symbols + 1] - starts, active)


def _pop(stacks: Stacks, of: _Symbols, active: np.ndarray) -> np.ndarray:
    """Undoes `_push` and returns its numbers, int64 [n, lanes], zeros where not active."""
    symbols = stacks.pop(of.counts, of.rows, active)
    numbers = np.where(active, of.first + symbols, 0)
    far = (symbols == of.counts.shape[1] - 2) & active & (of.halves > 0)
    for k, lane in np.argwhere(far).tolist():
        number = 0
        for _ in range(of.halves):
            value = stacks.top(lane) // _UNIT
            stacks.pop_one(lane, value * _UNIT, _UNIT)
            number = number << _HALF | value
        numbers[k, lane] = number - (number >> 31 << 32)  # two's complement
    return numbers
