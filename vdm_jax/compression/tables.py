"""Probabilities as whole numbers: cumulated counts of `ans.TOTAL`, for numbers on a grid.

Machines must agree on them to the last bit: they are compared (`chain.Chain.digest`) first.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import pixels
from vdm_jax.compression.ans import TOTAL
from vdm_jax.errors import UserError

FRACTIONS = 128
"""Means are rounded to such parts of the grid."""
# Standard deviations that have symbols, of what is popped only and of what is pushed: no symbol has
# less than 1 of TOTAL, so that those far off are popped more often than they should.
_POPPED, _PUSHED = 7.0, 10.0
_MOST_SPAN, _MOST_ROWS = 1 << 12, 1 << 22
_PIXEL_SPAN = 9.0
MOST_GROUPS = 64
"""Schedules that differ among the coefficients, and distributions among the pixels, at most."""
_AT_ONCE = 1 << 14  # in arrays of one size, compiled once


class GaussianTable(NamedTuple):
    """Normal distributions on the whole numbers, each integrated over the bin about the number.

    `counts`, uint32 [widths * FRACTIONS, symbols + 1], has a row for each standard deviation and
    each fraction of the mean. Symbol k is the number `span` below the mean's whole part, plus k.
    With `escape` the last symbol is any number farther off, else the outermost have the tails.
    """

    counts: np.ndarray
    span: int
    escape: bool


def gaussian(stds: np.ndarray, escape: bool) -> GaussianTable:
    """Returns the table of standard deviations [widths], in units of the grid.

    Raises UserError for one so wide that without `escape` the table would be too large.
    """
    span = math.ceil((_PUSHED if escape else _POPPED) * float(np.max(stds))) + 1
    if span > _MOST_SPAN and not escape:
        said = f"a standard deviation is {np.max(stds):.3g} times the grid"
        raise UserError(f"{said}: take a smaller grid, fewer steps, or a gamma that rises evenly")
    few = 8 * math.ceil(span / 8) if span <= 64 else 1 << (span - 1).bit_length()
    span = min(few, _MOST_SPAN)  # of few sizes, as each is compiled for
    edges = np.arange(2 * span + 2) - span - 0.5
    fractions = np.arange(FRACTIONS)[:, None] / FRACTIONS
    # The bin adds 1/12 to the variance (Sheppard's correction).
    narrowed = np.sqrt(np.square(np.asarray(stds)) - 1.0 / 12.0)
    scaled = (edges - fractions) / narrowed[:, None, None]
    pieces = np.resize(scaled, (-(-scaled.size // _AT_ONCE), _AT_ONCE))
    found = np.concatenate([np.asarray(_ndtr(piece)) for piece in pieces])
    below = found[: scaled.size].reshape(-1, len(edges))
    if escape:
        below = np.pad(below - below[:, :1], ((0, 0), (0, 1)), constant_values=1.0)
    else:
        below[:, 0], below[:, -1] = 0.0, 1.0
    return GaussianTable(_counts(below), span, escape)


_ndtr = jax.jit(jax.scipy.special.ndtr)


def split(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the whole part, int64, of means in units of the grid, and their fraction's row."""
    rounded = np.floor(mean * FRACTIONS + 0.5).astype(np.int64)
    return rounded // FRACTIONS, rounded % FRACTIONS


class PixelTable(NamedTuple):
    """p(x|z_0) for z_0 on a grid.

    Row `start` + r of `counts`, uint32 [rows, symbols + 1], is for the number `first` + r, from
    `first` to -`first`, the outermost for those beyond. Symbol k is the level `levels[row]` + k,
    the last any other level. Where pixels have several distributions, `first` and `start` are each
    pixel's, [dims, 1].
    """

    counts: np.ndarray
    first: int | np.ndarray
    levels: np.ndarray
    start: int | np.ndarray = 0


def of_each_pixel(gamma_0: np.ndarray, grid: np.ndarray, levels: int) -> PixelTable:
    """Returns the tables of pixels with these gamma_0 and grids, [dims], one after the other.

    Raises UserError for too many different ones.
    """
    each, of = np.unique(np.stack([gamma_0, grid]), axis=1, return_inverse=True)
    if each.shape[1] > MOST_GROUPS:
        said = f"gamma_0 gives the pixels {each.shape[1]} different variances"
        raise UserError(f"{said}, of which {MOST_GROUPS} are coded at most: take one for each band")
    made = [of_pixels(float(at), levels, float(width), gamma_0.max()) for at, width in each.T]
    if len(made) == 1:
        return made[0]
    of, rows = of.reshape(-1, 1), [len(table.counts) for table in made]
    counts, lowest = (np.concatenate([table[k] for table in made]) for k in (0, 2))
    first = np.array([table.first for table in made])
    return PixelTable(counts, first[of], lowest, (np.cumsum(rows) - rows)[of])


def of_pixels(gamma_0: float, levels: int, grid: float, widest: float | None = None) -> PixelTable:
    """Returns `pixels.decode_log_probs` as counts, for z_0 / alpha_0 on a grid of this width.

    It has as many symbols as one of gamma_0 = `widest` has.
    """
    # How far a level reaches that has any probability, and how many do at once.
    reach = 1.0 + _PIXEL_SPAN * math.exp(0.5 * gamma_0)
    first = -math.ceil(reach / grid)
    if -first > _MOST_ROWS:
        said = f"z_0 would lie on {-2 * first:,} points, too many: gamma_0 = {gamma_0:.3g} is too"
        raise UserError(f"{said} small for so fine a grid; take a smaller one or fewer steps")
    widest = gamma_0 if widest is None else widest
    width = min(levels, math.ceil(_PIXEL_SPAN * math.exp(0.5 * widest) * levels) + 2)
    every = np.arange(first, -first + 1)
    centre = np.floor((every * grid + 1.0) * (0.5 * levels)).astype(np.int64)
    lowest = np.clip(centre - width // 2, 0, levels - width)
    counts = np.empty((len(every), width + 2), np.uint32)
    size = max(_AT_ONCE // levels, 1)
    for start in range(0, len(every), size):
        part = slice(start, start + size)
        probs = np.asarray(_probs(np.resize(every[part] * grid, size), gamma_0, levels))
        symbols = lowest[part, None] + np.arange(width)
        near = np.take_along_axis(probs[: len(symbols)], symbols, axis=1)
        below = np.minimum(np.cumsum(near, axis=1), 1.0)
        counts[part] = _counts(np.pad(below, ((0, 0), (1, 1)), constant_values=(0.0, 1.0)))
    return PixelTable(counts, first, lowest)


@functools.partial(jax.jit, static_argnames="levels")
def _probs(z_0_rescaled: jax.Array, gamma_0: jax.Array, levels: int) -> jax.Array:
    """Returns exp of `pixels.decode_log_probs`, by operations that a file's format fixes."""
    error = z_0_rescaled[..., None] - pixels.level_values(levels)
    logits = -0.5 * jnp.exp(-gamma_0) * jnp.square(error)
    return jnp.exp(jax.nn.log_softmax(logits, axis=-1))


def _counts(below: np.ndarray) -> np.ndarray:
    """Returns cumulated probabilities [rows, symbols + 1], from 0 to 1, as counts of at least 1.

    To the nearest: what is 1 but for its last bit, as sums are in the tails, becomes what 1 does.
    """
    symbols = below.shape[1] - 1
    found = np.floor(below * (TOTAL - symbols) + 0.5).astype(np.uint32)
    return found + np.arange(symbols + 1, dtype=np.uint32)
