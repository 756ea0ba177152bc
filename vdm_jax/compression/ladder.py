"""The chain of a VDM on grids: all that coding takes of the mathematics, as tables and factors.

The latents z_0, ..., z_T of T steps are whole numbers k, z_i = k `grids[i]`. Means are linear in
what they are made of, so that a level needs the factors and one table; the factors are the core's
(`process.marginal`, `transition`, `reverse`) at 0 and 1. Sections 3 and 4 of the VDM paper.

Widths, factors and standard deviations are rounded to float32: what two machines make of exp and
log in float64 then agrees, but for one time in some hundred million.
"""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import pixels, process, schedule
from vdm_jax.compression import tables
from vdm_jax.compression.tables import GaussianTable, PixelTable
from vdm_jax.parameterization import to_x
from vdm_jax.types import Gamma, ReverseVar

__all__ = ["DEFAULT_GRID", "EPS_GRID", "MOST_PARTS", "MOST_STEPS", "Ladder", "make"]

MOST_STEPS = 4096
MOST_PARTS = 1 << 15
"""Of T times grid: what the tables take grows with it, to about a GB."""
DEFAULT_GRID = 2
"""Finer ones make no smaller files (docs/compression.md), but need more bits to begin with."""
EPS_GRID = 2.0**-8
"""The network's noise is rounded to multiples of this, which costs next to nothing."""
_SHARE_STEP = 0.02  # of the logarithm of a learned variance, unless that makes
_MOST_SHARES = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Ladder:
    """The levels of a VDM with T steps. All means are in units of the grid of what they are of.

    Attributes:
      gammas: float64 [T + 1].
      grids: float64 [T + 1], the distance of neighbouring values of z_i.
      forward: [T + 1], mean of z_i = forward[i] * k_{i-1}; of z_0 = forward[0] * x.
      encoders: the tables of q(z_0|x) and q(z_i|z_{i-1}), T + 1.
      of_z, of_eps: [T], mean of z_{i-1} given z_i = of_z[i-1] * k_i + of_eps[i-1] * n, with eps_hat
        = n EPS_GRID.
      decoders: the tables of p(z_{i-1}|z_i), T.
      shares: [T], into how many values `share` (`process.reverse`) is rounded, the widths of these
        tables; 1 where none is learned.
      prior: the table of p(z_T).
      values: [levels], x of each.
      pixels: the table of p(x|z_0).
      digest: sha256 of all of it.
    """

    gammas: np.ndarray
    grids: np.ndarray
    forward: np.ndarray
    encoders: list[GaussianTable]
    of_z: np.ndarray
    of_eps: np.ndarray
    decoders: list[GaussianTable]
    shares: np.ndarray
    prior: GaussianTable
    values: np.ndarray
    pixels: PixelTable
    digest: bytes

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.gammas) - 1


def make(
    gamma: Gamma, num_steps: int, levels: int, grid: int, reverse_var: ReverseVar = "posterior"
) -> Ladder:
    """The ladder of a schedule. Needs 64-bit JAX.

    Args:
      gamma: t -> gamma(t), of float64.
      num_steps: T, up to MOST_STEPS.
      levels: the number of values of a pixel.
      grid: into how many parts the narrowest standard deviation of a level is divided.
      reverse_var: the variance of p(z_s|z_t), see `vdm_jax.loss.diffusion`.

    Raises:
      ValueError: if gamma doesn't rise from step to step, or hardly in some; or if num_steps times
        grid is more than MOST_PARTS.
    """
    if num_steps * grid > MOST_PARTS:
        raise ValueError(
            f"num_steps = {num_steps} and grid = {grid} need too large tables: their product may "
            f"be {MOST_PARTS} at most; take a smaller grid"
        )
    gammas = np.asarray(gamma(jnp.arange(num_steps + 1) / num_steps), np.float64)
    if not np.all(np.isfinite(gammas)) or not np.all(np.diff(gammas) > 0):
        raise ValueError(f"gamma must rise in each of the {num_steps} steps; it doesn't.")
    s, t = jnp.asarray(gammas[:-1]), jnp.asarray(gammas[1:])
    one, zero = jnp.ones(num_steps), jnp.zeros(num_steps)
    share = float(reverse_var == "transition")
    first, step = process.marginal(jnp.ones(1), gammas[0]), process.transition(one, s, t)
    of_z = process.reverse(one, to_x(zero, one, t, "eps"), s, t, share)
    of_eps = process.reverse(zero, to_x(one, zero, t, "eps"), s, t, share)

    there = np.sqrt(np.concatenate([first.var, step.var]))
    back = np.sqrt(np.append(of_z.var, 1.0))  # of z_0, ..., z_T: the last is the prior's
    grids = _float32(np.minimum(there, back) / grid)
    there, back = there / grids, back / grids
    widest = np.asarray(process.variance_log_ratio(s, t)) * (reverse_var == "learned")
    shares = np.minimum(1 + np.ceil(widest / _SHARE_STEP).astype(int), _MOST_SHARES)
    decoders = []
    for std, log_ratio, count in zip(back, widest, shares, strict=False):
        share_of = np.arange(count) / max(count - 1, 1)
        decoders.append(tables.gaussian(_float32(std * np.exp(0.5 * log_ratio * share_of)), True))
    alpha_0 = np.asarray(schedule.alpha(gammas[0]))
    found = Ladder(
        gammas=gammas,
        grids=grids,
        forward=_float32(np.append(first.mean / grids[0], step.mean * grids[:-1] / grids[1:])),
        encoders=[tables.gaussian(std, False) for std in _float32(there)[:, None]],
        of_z=_float32(of_z.mean * grids[1:] / grids[:-1]),
        of_eps=_float32(of_eps.mean * EPS_GRID / grids[:-1]),
        decoders=decoders,
        shares=shares,
        prior=tables.gaussian(_float32(back[-1:]), True),
        values=_float32(pixels.level_values(levels)),
        pixels=tables.of_pixels(
            float(_float32(gammas[0])), levels, float(_float32(grids[0] / alpha_0))
        ),
        digest=b"",
    )
    return dataclasses.replace(found, digest=_digest(found))


def _digest(ladder: Ladder) -> bytes:
    running = hashlib.sha256()
    parts = [ladder.grids, ladder.forward, ladder.of_z, ladder.of_eps, ladder.shares, ladder.values]
    parts += [table.counts for table in (*ladder.encoders, *ladder.decoders, ladder.prior)]
    for part in (*parts, ladder.pixels.counts, ladder.pixels.levels):
        running.update(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).tobytes())
    return running.digest()


def _float32(values: ArrayLike) -> np.ndarray:
    return np.asarray(values).astype(np.float32).astype(np.float64)
