"""A differential equation for each of a batch, solved to a tolerance that holds for each.

Needs diffrax, and is therefore not imported by `vdm_jax` itself.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from vdm_jax import checks, extras
from vdm_jax.process import expand
from vdm_jax.types import Tensor

extras.need("ode")

import diffrax
import equinox as eqx

State = tuple[Tensor, ...]
Field = Callable[[Tensor, State], State]

Trace = Literal["exact", "hutchinson"]
TRACES: tuple[Trace, ...] = get_args(Trace)

Probes = Literal["rademacher", "gaussian"]
PROBES: tuple[Probes, ...] = get_args(Probes)

Adjoint = Literal["checkpoint", "backsolve"]
ADJOINTS: tuple[Adjoint, ...] = get_args(Adjoint)

_FIRST_STEP = 0.01  # of the way; the next are as long as the tolerance allows


class Solver(NamedTuple):
    """Settings by which a flow is solved: tolerances, gradient and the trace of a Jacobian.

    Adaptive steps of the explicit method of Tsitouras 2011 (order 5), the same for the whole batch:
    none is accepted whose estimated error exceeds atol + rtol |state| in the root mean square over
    any array of any example, so that the hardest example decides the steps of all.
    """

    trace: Trace = "exact"
    """Trace in a log-density: "exact", by as many forward derivatives as an event has elements, or
    "hutchinson", by one for each probe: unbiased in log p(x) (Grathwohl et al. 2019)."""
    probes: Probes = "rademacher"
    """Probes of "hutchinson", drawn once for a trajectory: "rademacher" (signs) or "gaussian"."""
    num_probes: int = 1
    """Number of probes for each example."""
    rtol: float = 1e-5
    """Relative tolerance."""
    atol: float = 1e-5
    """Absolute tolerance."""
    max_steps: int = 4096
    """Number of steps, accepted or not, after which the solver gives up."""
    adjoint: Adjoint = "checkpoint"
    """Method of the gradient. "checkpoint" differentiates the solver's own steps: the gradient is
    that of the number returned; memory grows as the square root of the steps. "backsolve" solves
    the adjoint equation back from the end (Chen et al. 2018, section 2), by the same tolerances, in
    which atol is absolute in the cotangents too: memory doesn't grow, and the gradient has an error
    of its own. The gradient by parameters doesn't decide the steps (Kidger et al. 2021)."""

    def check(self, dtype: DTypeLike) -> None:
        """Raises ValueError for a setting out of range, or finer than `dtype` resolves."""
        for name, names in (("trace", TRACES), ("probes", PROBES), ("adjoint", ADJOINTS)):
            checks.choice(getattr(self, name), name, names)
        for name, tolerance in (("rtol", self.rtol), ("atol", self.atol)):
            if not tolerance > 0.0:
                raise ValueError(f"{name} must be positive, got {tolerance}.")
        if max(self.rtol, self.atol) < finest(dtype):
            said = f"rtol = {self.rtol} and atol = {self.atol} are finer than"
            hint = f"raise rtol to {finest(dtype):.1e} or more, or compute in float64"
            raise ValueError(f"{said} {jnp.dtype(dtype).name} resolves; {hint} (jax_enable_x64).")
        checks.count(self.num_probes, "num_probes")
        checks.count(self.max_steps, "max_steps")


DEFAULT = Solver()


def finest(dtype: DTypeLike) -> float:
    """Returns the least tolerance that numbers of a type resolve."""
    return 4.0 * float(jnp.finfo(dtype).eps)


class Steps(NamedTuple):
    """Cost of a solution for the whole batch."""

    evaluations: Array  # of the field, but those of "backsolve" after a rejected first step
    accepted: Array  # steps made
    rejected: Array  # steps tried and found too coarse


def solve(
    field: Field, state: State, start: ArrayLike, end: ArrayLike, solver: Solver
) -> tuple[State, Steps]:
    """Returns the solution of d state / dt = field(t, state) at `end`, and its cost.

    Differentiable by reverse mode, in all that the field closes over (`Solver.adjoint`). The state
    is arrays [batch, ...], and the caller has checked the solver. The state is NaN for the whole
    batch after max_steps steps, or where the field isn't finite however short the step; where the
    first array isn't finite at the start it is NaN for that example alone. Where "backsolve" gives
    up on its way back, the gradient raises diffrax's error. Raises ValueError inside a
    `jax.shard_map` that checks what varies: equinox's errors, which diffrax uses, can't go there.
    """
    z = state[0]
    kind = jax.typeof(z).manual_axis_type
    if kind and kind.varying:
        raise ValueError("a differential equation in jax.shard_map needs its check_vma=False.")
    start, end = jnp.asarray(start, z.dtype), jnp.asarray(end, z.dtype)
    finite = jnp.all(jnp.isfinite(z.reshape(z.shape[0], -1)), axis=1)
    state = (jnp.where(expand(finite, z), z, 0.0), *state[1:])

    # Over s in [0, 1], where steps have one scale: the shortest can't be resolved by the dtype.
    def scaled(s: Any, state: State) -> State:
        return tuple((end - start) * d for d in field(start + (end - start) * s, state))

    method, zero = diffrax.Tsit5(), jnp.zeros((), z.dtype)
    given: Callable = scaled
    first: Any = None
    if solver.adjoint == "backsolve":
        # It differentiates by its arguments alone: all that the field closes over becomes one.
        given = eqx.filter_closure_convert(scaled, zero, state)
    else:
        # A step's first stage is the last of the step before. For the first step it's given, or it
        # would be evaluated again each time that step is rejected, and not be counted.
        first = (jnp.array(False), scaled(zero, state))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda s, state, given: given(jnp.asarray(s, z.dtype), state)),
        method, t0=0.0, t1=1.0, dt0=_FIRST_STEP, y0=state, args=given, solver_state=first,
        stepsize_controller=_controller(solver, z.dtype, _worst), max_steps=solver.max_steps,
        adjoint=_adjoint(solver, z.dtype), throw=False,
    )  # fmt: skip
    solved = finite & diffrax.is_successful(solution.result)
    accepted, rejected = (solution.stats[f"num_{k}_steps"] for k in ("accepted", "rejected"))
    evaluations = 1 + (method.tableau.num_stages - 1) * (accepted + rejected)
    # A factor and not a choice, so that the gradient isn't finite either.
    ys = (y[-1] * jnp.where(expand(solved, y[-1]), 1.0, jnp.nan) for y in solution.ys)
    return tuple(ys), Steps(evaluations, accepted, rejected)


def _adjoint(solver: Solver, dtype: DTypeLike) -> diffrax.AbstractAdjoint:
    if solver.adjoint == "checkpoint":
        return diffrax.RecursiveCheckpointAdjoint()

    def norm(error: tuple[State, State, Any, Any]) -> Tensor:
        # Of the state and its cotangent. What has no influence on these decides no steps.
        return jnp.maximum(_worst(error[0]), _worst(error[1]))

    # A gradient that isn't one would look like any other, so here giving up is an error.
    controller = _controller(solver, dtype, norm)
    return diffrax.BacksolveAdjoint(stepsize_controller=controller, throw=True)


def _controller(solver: Solver, dtype: DTypeLike, norm: Any) -> diffrax.PIDController:
    shortest = 16 * float(jnp.finfo(dtype).eps)
    rtol, atol = solver.rtol, solver.atol
    return diffrax.PIDController(rtol, atol, norm=norm, dtmin=shortest, force_dtmin=False)


def _worst(error: State) -> Tensor:
    """Returns the largest, of all examples and arrays, root mean square over the elements."""
    squares = [jnp.mean(jnp.square(e).reshape(e.shape[0], -1), axis=1) for e in error]
    return jnp.sqrt(jnp.max(jnp.stack(squares)))
