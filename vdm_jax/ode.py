"""A differential equation for each of a batch, solved to a tolerance that holds for each.

The one place that knows diffrax (and equinox, on which it is built); `vdm_jax` itself doesn't
import it.
"""

from collections.abc import Callable
from numbers import Integral
from typing import Any, Literal, NamedTuple, get_args

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from vdm_jax.process import expand
from vdm_jax.types import Tensor

__all__ = ["ADJOINTS", "Adjoint", "Field", "Solution", "check", "solve"]

State = tuple[Tensor, ...]
Field = Callable[[Tensor, State], State]

Adjoint = Literal["checkpoint", "backsolve"]
"""How the gradient of a solution is computed; see `solve`."""

ADJOINTS: tuple[Adjoint, ...] = get_args(Adjoint)

_FIRST_STEP = 0.01  # of the way; the next are as long as the tolerance allows


class Solution(NamedTuple):
    """The end of a trajectory, and what it took."""

    state: State
    """Each [batch, ...]; NaN for the examples of which there is no solution."""
    num_evaluations: Array
    """Evaluations of the field, those of rejected steps among them. With "backsolve" the solver
    makes one more for each time that it rejects its first step."""
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
    adjoint: Adjoint = "checkpoint",
) -> Solution:
    """Integrate d state / d gamma = field(gamma, state) from `start` to `end`, either way round.

    Adaptive steps of the explicit method of Tsitouras 2011 (order 5), the same for the whole batch:
    none is accepted whose estimated error exceeds atol + rtol |state| in the root mean square over
    any array of any example. So the error of one doesn't hide among the others, but the hardest
    example decides the steps of all. Differentiable by reverse mode, in all that the field closes
    over, in two ways. "checkpoint" differentiates the solver's own steps: the gradient is that of
    the number returned, to rounding; memory grows as the square root of the steps. "backsolve"
    solves the adjoint equation from `end` back to `start` (Chen et al. 2018, section 2), by the
    same method and tolerances: memory doesn't grow, and the gradient has an error of its own. Its
    tolerance atol is absolute in the cotangents too, so that of a sum over the batch is better
    than that of a mean; the gradient by parameters doesn't decide the steps (Kidger et al. 2021).

    Args:
      field: (gamma, state) -> its derivatives, arrays of the same shapes.
      state: arrays [batch, ...]; where the first isn't finite the example is NaN at the end, and
        the others aren't disturbed.
      start, end: scalars.
      rtol, atol, max_steps, adjoint: as `check` wants them.

    Returns:
      `Solution`; its state is NaN for the whole batch after max_steps steps, or where the field
      isn't finite however short the step. Where "backsolve" gives up on its way back it raises
      diffrax's error when the gradient is computed.
    """
    z = state[0]
    start, end = jnp.asarray(start, z.dtype), jnp.asarray(end, z.dtype)
    finite = jnp.all(jnp.isfinite(z.reshape(z.shape[0], -1)), axis=1)
    state = (jnp.where(expand(finite, z), z, 0.0), *state[1:])

    # Over s in [0, 1], where steps have one scale: the shortest can't be resolved by the dtype.
    def scaled(s: Any, state: State) -> State:
        return tuple((end - start) * d for d in field(start + (end - start) * s, state))

    solver, zero = diffrax.Tsit5(), jnp.zeros((), z.dtype)
    given: Callable = scaled
    first: Any = None
    if adjoint == "backsolve":
        # It differentiates by its arguments alone: all that the field closes over becomes one.
        given = eqx.filter_closure_convert(scaled, zero, state)
    else:
        # A step's first stage is the last of the step before. For the first step it's given, or it
        # would be evaluated again each time that step is rejected, and not be counted.
        first = (jnp.array(False), scaled(zero, state))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda s, state, given: given(jnp.asarray(s, z.dtype), state)),
        solver,
        t0=0.0,
        t1=1.0,
        dt0=_FIRST_STEP,
        y0=state,
        args=given,
        stepsize_controller=_controller(rtol, atol, z.dtype, _worst),
        max_steps=max_steps,
        throw=False,
        adjoint=_adjoint(adjoint, rtol, atol, z.dtype),
        solver_state=first,
    )
    solved = finite & diffrax.is_successful(solution.result)
    accepted, rejected = (solution.stats[f"num_{k}_steps"] for k in ("accepted", "rejected"))
    evaluations = 1 + (solver.tableau.num_stages - 1) * (accepted + rejected)
    # A factor and not a choice, so that the gradient isn't finite either.
    ys = (y[-1] * jnp.where(expand(solved, y[-1]), 1.0, jnp.nan) for y in solution.ys)
    return Solution(tuple(ys), evaluations, accepted, rejected)


def check(
    dtype: DTypeLike, rtol: float, atol: float, max_steps: int, adjoint: Adjoint = "checkpoint"
) -> None:
    """Raise ValueError unless the tolerances are positive and `dtype` can hold them."""
    if adjoint not in ADJOINTS:
        raise ValueError(f"adjoint must be one of {', '.join(ADJOINTS)}, got {adjoint!r}.")
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


def _adjoint(name: Adjoint, rtol: float, atol: float, dtype: DTypeLike) -> diffrax.AbstractAdjoint:
    if name == "checkpoint":
        return diffrax.RecursiveCheckpointAdjoint()

    def norm(error: tuple[State, State, Any, Any]) -> Tensor:
        # Of the state and its cotangent. What has no influence on these decides no steps.
        return jnp.maximum(_worst(error[0]), _worst(error[1]))

    # A gradient that isn't one would look like any other, so here giving up is an error.
    backwards = _controller(rtol, atol, dtype, norm)
    return diffrax.BacksolveAdjoint(stepsize_controller=backwards, throw=True)


def _controller(rtol: float, atol: float, dtype: DTypeLike, norm: Any) -> diffrax.PIDController:
    shortest = 16 * float(jnp.finfo(dtype).eps)
    return diffrax.PIDController(rtol, atol, norm=norm, dtmin=shortest, force_dtmin=False)


def _worst(error: State) -> Tensor:
    """The largest, of all examples and arrays, root mean square over the elements."""
    squares = [jnp.mean(jnp.square(e).reshape(e.shape[0], -1), axis=1) for e in error]
    return jnp.sqrt(jnp.max(jnp.stack(squares)))
