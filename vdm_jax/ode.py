"""A differential equation for each of a batch, solved to a tolerance that holds for each.

The one place that knows diffrax; `vdm_jax` itself doesn't import it.
"""

from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import diffrax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from vdm_jax.process import expand
from vdm_jax.types import Tensor

__all__ = ["Field", "Solution", "check", "solve"]

State = tuple[Tensor, ...]
Field = Callable[[Tensor, State], State]

_FIRST_STEP = 0.01  # of the way; the next are as long as the tolerance allows


class Solution(NamedTuple):
    """The end of a trajectory, and what it took."""

    state: State
    """Each [batch, ...]; NaN for the examples of which there is no solution."""
    num_evaluations: Array
    """Evaluations of the field, those of rejected steps among them."""
    num_accepted: Array
    num_rejected: Array
    """Steps made, and steps tried and found too coarse."""


def solve(
    field: Field,
    state: State,
    start: ArrayLike,
    end: ArrayLike,
    rtol: float,
    atol: float,
    max_steps: int,
) -> Solution:
    """Integrate d state / d gamma = field(gamma, state) from `start` to `end`, either way round.

    Adaptive steps of the explicit method of Tsitouras 2011 (order 5), the same for the whole batch:
    none is accepted whose estimated error exceeds atol + rtol |state| in the root mean square over
    any array of any example. So the error of one doesn't hide among the others, but the hardest
    example decides the steps of all. Differentiable by reverse mode.

    Args:
      field: (gamma, state) -> its derivatives, arrays of the same shapes.
      state: arrays [batch, ...]; where the first isn't finite the example is NaN at the end, and
        the others aren't disturbed.
      start, end: scalars.
      rtol, atol, max_steps: as `check` wants them.

    Returns:
      `Solution`; its state is NaN for the whole batch after max_steps steps, or where the field
      isn't finite however short the step.
    """
    z = state[0]
    start, end = jnp.asarray(start, z.dtype), jnp.asarray(end, z.dtype)
    finite = jnp.all(jnp.isfinite(z.reshape(z.shape[0], -1)), axis=1)
    state = (jnp.where(expand(finite, z), z, 0.0), *state[1:])

    # Over s in [0, 1], where steps have one scale: the shortest can't be resolved by the dtype.
    def scaled(s: Any, state: State, args: None) -> State:
        return tuple((end - start) * d for d in field(start + (end - start) * s, state))

    solver = diffrax.Tsit5()
    shortest = 16 * float(jnp.finfo(z.dtype).eps)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(scaled),
        solver,
        t0=0.0,
        t1=1.0,
        dt0=_FIRST_STEP,
        y0=state,
        stepsize_controller=diffrax.PIDController(
            rtol, atol, norm=_worst, dtmin=shortest, force_dtmin=False
        ),
        max_steps=max_steps,
        throw=False,
        # A step's first stage is the last of the step before. For the first step it's given, or it
        # would be evaluated again each time that step is rejected, and not be counted.
        solver_state=(jnp.array(False), scaled(jnp.zeros((), z.dtype), state, None)),
    )
    solved = finite & diffrax.is_successful(solution.result)
    accepted, rejected = (solution.stats[f"num_{k}_steps"] for k in ("accepted", "rejected"))
    evaluations = 1 + (solver.tableau.num_stages - 1) * (accepted + rejected)
    # A factor and not a choice, so that the gradient isn't finite either.
    ys = (y[-1] * jnp.where(expand(solved, y[-1]), 1.0, jnp.nan) for y in solution.ys)
    return Solution(tuple(ys), evaluations, accepted, rejected)


def check(dtype: DTypeLike, rtol: float, atol: float, max_steps: int) -> None:
    """Raise ValueError unless the tolerances are positive and `dtype` can hold them."""
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not tolerance > 0.0:
            raise ValueError(f"{name} must be positive, got {tolerance}.")
    finest = 4.0 * float(jnp.finfo(dtype).eps)
    if max(rtol, atol) < finest:
        raise ValueError(
            f"rtol = {rtol} and atol = {atol} are finer than {jnp.dtype(dtype).name} resolves; "
            f"raise rtol to {finest:.1e} or more, or compute in float64 (jax_enable_x64)."
        )
    if isinstance(max_steps, bool) or not isinstance(max_steps, Integral) or max_steps < 1:
        raise ValueError(f"max_steps must be an integer of at least 1, got {max_steps!r}.")


def _worst(error: State) -> Tensor:
    """The largest, of all examples and arrays, root mean square over the elements."""
    squares = [jnp.mean(jnp.square(e).reshape(e.shape[0], -1), axis=1) for e in error]
    return jnp.sqrt(jnp.max(jnp.stack(squares)))
