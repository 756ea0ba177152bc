"""The chain of a VDM on grids: all that coding takes of the mathematics, as tables and factors.

The latents z_0, ..., z_T are whole numbers k, z_i = k `grids[i]`. Means are linear in what they are
made of, so that a level needs factors, the core's at 0 and 1, and one table. VDM sections 3 and 4.
All are rounded to float32: what two machines make of exp and log in float64 then agrees, but for
one time in some hundred million.
"""

import dataclasses
import functools
import hashlib

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import pixels, process, schedule
from vdm_jax.compression import tables
from vdm_jax.compression.steps import Steps
from vdm_jax.compression.tables import GaussianTable, PixelTable
from vdm_jax.errors import UserError
from vdm_jax.parameterization import to_x

MOST_STEPS = 4096
MOST_PARTS = 1 << 15  # T times grid: the tables grow with it, to about a GB
DEFAULT_GRID = 2  # finer ones make no smaller files (docs/compression.md)
EPS_GRID = 2.0**-8
"""The network's noise is rounded to multiples of this, which costs next to nothing."""
_SHARE_STEP = 0.02  # of the logarithm of a learned variance, unless that makes
_MOST_SHARES = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """The levels of a VDM with T steps. All means are in units of the grid of what they are of.

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
    values: np.ndarray  # [levels], x of each level
    pixels: PixelTable  # of p(x|z_0)

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
        for part in (*parts, self.pixels.counts, self.pixels.levels):
            running.update(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).tobytes())
        return running.digest()


def make(steps: Steps, levels: int, grid: int) -> Chain:
    """Returns the chain of these steps. Needs 64-bit JAX.

    `levels` is the number of values of a pixel, `grid` that of parts into which the narrowest
    standard deviation of a level is divided. Raises UserError for a gamma that doesn't rise, or
    hardly in some steps, and for the number of steps times grid above MOST_PARTS.
    """
    gammas, share = steps
    num_steps = len(gammas) - 1
    if num_steps * grid > MOST_PARTS:
        raise UserError(f"num_steps times grid is {num_steps * grid}, may be {MOST_PARTS} at most")
    if not np.all(np.isfinite(gammas)) or not np.all(np.diff(gammas) > 0):
        raise UserError(f"gamma must rise in each of the {num_steps} steps; it doesn't.")
    s, t = jnp.asarray(gammas[:-1]), jnp.asarray(gammas[1:])
    one, zero = jnp.ones(num_steps), jnp.zeros(num_steps)
    first, step = process.marginal(jnp.ones(1), gammas[0]), process.transition(one, s, t)
    wider = 0.0 if share is None else share
    of_z = process.reverse(one, to_x(zero, one, t, "eps"), s, t, wider)
    of_eps = process.reverse(zero, to_x(one, zero, t, "eps"), s, t, wider)

    there = np.sqrt(np.concatenate([first.var, step.var]))
    back = np.sqrt(np.append(of_z.var, 1.0))  # of z_0, ..., z_T: the last is the prior's
    grids = _float32(np.minimum(there, back) / grid)
    there, back = there / grids, back / grids
    widest = np.asarray(process.variance_log_ratio(s, t)) * (share is None)
    shares = np.minimum(1 + np.ceil(widest / _SHARE_STEP).astype(int), _MOST_SHARES)
    width_0 = _float32(grids[0] / np.asarray(schedule.alpha(gammas[0])))
    return Chain(
        gammas=gammas,
        grids=grids,
        forward=_float32(np.append(first.mean / grids[0], step.mean * grids[:-1] / grids[1:])),
        encoders=[tables.gaussian(std, False) for std in _float32(there)[:, None]],
        of_z=_float32(of_z.mean * grids[1:] / grids[:-1]),
        of_eps=_float32(of_eps.mean * EPS_GRID / grids[:-1]),
        decoders=[_decoder(*level) for level in zip(back, widest, shares, strict=False)],
        share=share,
        shares=shares,
        prior=tables.gaussian(_float32(back[-1:]), True),
        values=_float32(pixels.level_values(levels)),
        pixels=tables.of_pixels(float(_float32(gammas[0])), levels, float(width_0)),
    )


def _decoder(std: float, log_ratio: float, shares: int) -> GaussianTable:
    """Returns the table of p(z_s|z_t), whose variance is exp(log_ratio) times larger at most."""
    share = np.arange(shares) / max(shares - 1, 1)
    return tables.gaussian(_float32(std * np.exp(0.5 * log_ratio * share)), True)


def _float32(values: ArrayLike) -> np.ndarray:
    return np.asarray(values).astype(np.float32).astype(np.float64)
