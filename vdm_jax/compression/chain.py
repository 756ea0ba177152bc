"""The chain of a VDM on grids: all that coding takes of the mathematics, as tables and factors.

The latents z_0, ..., z_T are whole numbers k, z_i = k `grids[i]`. Means are linear in what they are
made of, so that a level needs factors, the core's at 0 and 1, and one table. VDM sections 3 and 4.
All are rounded to float32: what two machines make of exp and log in float64 then agrees, but for
one time in some hundred million.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import cast

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import mixed, pixels, process, schedule
from vdm_jax.compression import tables
from vdm_jax.compression.steps import Steps
from vdm_jax.compression.tables import MOST_GROUPS, GaussianTable, PixelTable
from vdm_jax.errors import UserError
from vdm_jax.mixed import Levels
from vdm_jax.parameterization import to_x
from vdm_jax.transforms import Coefficients, Transform
from vdm_jax.types import Tensor

MOST_STEPS = 4096
MOST_PARTS = 1 << 15  # T times grid: the tables grow with it, to about a GB
DEFAULT_GRID = 2  # finer ones make no smaller files (docs/compression.md)
EPS_GRID = 2.0**-8
"""The network's noise is rounded to multiples of this, which costs next to nothing."""
_SHARE_STEP = 0.02  # of the logarithm of a learned variance, unless that makes
_MOST_SHARES = 64
_PIXEL_PARTS = 16.0  # of the standard deviation of W^T z_0


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """The levels of a VDM with T steps. All means are in units of the grid of what they are of.

    With a schedule of each element what is said to be [T + 1] or [T] is [.., dims, 1]; elements of
    the same gammas are a group, with the same rows of all tables.

    The mean of z_i is forward[i] * k_{i-1}, that of z_0 is forward[0] * x; the mean of z_{i-1}
    given z_i is of_z[i-1] * k_i + of_eps[i-1] * n, with eps_hat = n EPS_GRID.
    """

    gammas: np.ndarray  # float64 [T + 1]
    grids: np.ndarray  # float64 [T + 1], the distance of neighbouring values of z_i
    forward: np.ndarray  # [T + 1]
    encoders: list[GaussianTable]  # T + 1 tables, of q(z_0|x) and q(z_i|z_{i-1})
    of_z: np.ndarray  # [T]
    of_eps: np.ndarray  # [T]
    decoders: list[GaussianTable]  # T tables, of p(z_{i-1}|z_i)
    share: np.ndarray | None  # [T], of each step; None if the network tells it
    shares: np.ndarray  # [T], the number of values of `share`, each with widths of its own; or 1
    prior: GaussianTable  # of p(z_T)
    group: np.ndarray  # of each element, [dims, 1]; or of all, [1, 1]
    values: np.ndarray  # [levels], x of each level
    pixels: PixelTable  # of p(x|z_0)
    transform: Transform | None  # W, if z are coefficients
    event: tuple[int, ...]  # the shape of an image, for W
    to_pixels: tuple[np.ndarray, np.ndarray]  # grids of z_0 / alpha_0, and of W^T of that

    @property
    def num_steps(self) -> int:
        """The number of steps T."""
        return len(self.gammas) - 1

    @functools.cached_property
    def digest(self) -> bytes:
        """The SHA-256 of all that coding uses."""
        parts = [self.grids, self.forward, self.of_z, self.of_eps, self.shares, self.values]
        parts += [table.counts for table in (*self.encoders, *self.decoders, self.prior)]
        running = hashlib.sha256()
        parts += [self.pixels.counts, self.pixels.levels]
        if self.transform or self.group.size > 1:
            parts += [self.group, np.asarray(self.pixels.first), *self.to_pixels]
        for part in parts:
            running.update(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).tobytes())
        return running.digest()

    def data(self, x: np.ndarray) -> np.ndarray:
        """Returns what z_0 is made of, of pixels x [dims, lanes]: their values, or W of these."""
        values = self.values[x]
        return self._through(self.transform.forward, values) if self.transform else values

    def rescaled(self, z_0: np.ndarray) -> np.ndarray:
        """Returns z_0 / alpha_0 of whole numbers z_0 [dims, lanes], as numbers for `pixels`.

        With a transform it is W^T of it, rounded: any function of z_0 makes a decoder.
        """
        if not self.transform:
            return z_0
        of_z, of_pixels = self.to_pixels
        found = self._through(self.transform.inverse, z_0 * of_z)
        return np.rint(found / of_pixels).astype(np.int64)

    def _through(self, of: Callable[[Tensor], Tensor], values: np.ndarray) -> np.ndarray:
        images = values.T.reshape(-1, *self.event)
        return np.asarray(of(jnp.asarray(images))).reshape(values.shape[::-1]).T


def make(steps: Steps, levels: Levels, grid: int, event: tuple[int, ...] = ()) -> Chain:
    """Returns the chain of these steps. Needs 64-bit JAX.

    `levels` is the number of values of a pixel, `grid` that of parts into which the narrowest
    standard deviation of a level is divided, `event` the shape of an image, for schedules of each
    element or a transform. Raises UserError for a gamma that doesn't rise, or hardly in some steps,
    too many different ones, and for the number of steps times grid above MOST_PARTS.
    """
    (gammas, group), share = _groups(steps.gammas, grid, event), steps.shares
    s, t = jnp.asarray(gammas[:-1]), jnp.asarray(gammas[1:])
    one, zero = jnp.ones(t.shape), jnp.zeros(t.shape)
    first, step = process.marginal(one[:1], gammas[:1]), process.transition(one, s, t)
    wider = 0.0 if share is None else share[:, None]
    of_z = process.reverse(one, to_x(zero, one, t, "eps"), s, t, wider)
    of_eps = process.reverse(zero, to_x(one, zero, t, "eps"), s, t, wider)

    there = np.sqrt(np.concatenate([first.var, step.var]))
    back = np.sqrt(np.concatenate([of_z.var, one[:1]]))  # of z_0, ..., z_T: the last's prior's
    grids = _float32(np.minimum(there, back) / grid)
    widest = np.asarray(process.variance_log_ratio(s, t)) * (share is None)
    shares = np.minimum(1 + np.ceil(widest.max(1) / _SHARE_STEP).astype(int), _MOST_SHARES)
    forward = np.concatenate([first.mean / grids[:1], step.mean * grids[:-1] / grids[1:]])

    def each(values: ArrayLike) -> np.ndarray:
        """Returns the values [n, groups] of each element, [n, dims, 1]; of one schedule [n]."""
        return np.asarray(values)[:, group if steps.gammas.ndim > 1 else 0]

    encoders = [tables.gaussian(std, False) for std in _float32(there / grids)]
    to_pixels, table = _pixels(each(gammas)[0], each(grids)[0], levels, event)
    return Chain(
        gammas=each(gammas),
        grids=each(grids),
        forward=each(_float32(forward)),
        encoders=encoders,
        of_z=each(_float32(of_z.mean * grids[1:] / grids[:-1])),
        of_eps=each(_float32(of_eps.mean * EPS_GRID / grids[:-1])),
        decoders=[_decoder(*level) for level in zip(back / grids, widest, shares, strict=False)],
        share=share,
        shares=shares,
        prior=tables.gaussian(_float32(back[-1] / grids[-1]), True),
        group=group,
        values=_float32(pixels.level_values(_number(levels))),
        pixels=table,
        transform=levels.transform if isinstance(levels, Coefficients) else None,
        event=event,
        to_pixels=to_pixels,
    )


def _groups(gammas: np.ndarray, grid: int, event: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the schedules that differ, [T + 1, groups], and that of each element, [dims, 1].

    Those of elements are rounded to float32: equal ones may be computed with other last bits.
    """
    num_steps = len(gammas) - 1
    if num_steps * grid > MOST_PARTS:
        raise UserError(f"num_steps times grid is {num_steps * grid}, may be {MOST_PARTS} at most")
    found, group = gammas[:, None], np.zeros(1, int)
    if gammas.ndim > 1:
        every = np.broadcast_to(_float32(gammas), (len(gammas), *event)).reshape(len(gammas), -1)
        found, group = np.unique(every, axis=1, return_inverse=True)
    if not np.all(np.isfinite(found)) or not np.all(np.diff(found, axis=0) > 0):
        raise UserError(f"gamma must rise in each of the {num_steps} steps; it doesn't.")
    if found.shape[1] > MOST_GROUPS:
        said = f"gamma has {found.shape[1]} different schedules"
        raise UserError(f"{said}, of which {MOST_GROUPS} are coded at most: take one for each band")
    if (parts := num_steps * grid * found.shape[1]) > 4 * MOST_PARTS:
        said = f"num_steps times grid times the {found.shape[1]} schedules of gamma is {parts}"
        raise UserError(f"{said}, may be {4 * MOST_PARTS} at most")
    return found, group.reshape(-1, 1)


def _pixels(
    gamma_0: np.ndarray, grid_0: np.ndarray, levels: Levels, event: tuple[int, ...]
) -> tuple[tuple[np.ndarray, np.ndarray], PixelTable]:
    """Returns the grids of z_0 / alpha_0 and of the pixels, and the table of the latter."""
    of_z = of_pixels = _float32(grid_0 / np.asarray(schedule.alpha(jnp.asarray(gamma_0))))
    if isinstance(levels, Coefficients):
        every = gamma_0.reshape(1, *event) if gamma_0.ndim else gamma_0
        gamma_0 = np.asarray(levels.gamma_of_pixels(every, jnp.zeros((1, *event))))
        of_pixels = _float32(np.exp(0.5 * gamma_0.reshape(-1, 1)) / _PIXEL_PARTS)
    number = _number(levels)
    table = tables.of_each_pixel(np.ravel(_float32(gamma_0)), np.ravel(of_pixels), number)
    return (of_z, of_pixels), table


def _number(levels: Levels) -> int:
    return cast(int, mixed.kinds(levels)[0])


def _decoder(std: np.ndarray, log_ratio: np.ndarray, shares: int) -> GaussianTable:
    """Returns the table of p(z_s|z_t), whose variance is exp(log_ratio) times larger at most."""
    share = np.arange(shares) / max(shares - 1, 1)
    stds = std[:, None] * np.exp(0.5 * log_ratio[:, None] * share)
    return tables.gaussian(_float32(stds.ravel()), True)


def _float32(values: ArrayLike) -> np.ndarray:
    return np.asarray(values).astype(np.float32).astype(np.float64)
