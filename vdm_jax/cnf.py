"""Continuous normalising flows: the density that any differential equation carries along.

Points that move by dz/dt = field(t, z) take their density with them, and along a path it changes by
(Chen et al. 2018, theorem 1, the instantaneous change of variables)

    d log p(z(t)) / dt = -tr(d field / dz).

So with a base density at t = `end`, that of x = z(start) is

    log p(x) = log base(z(end)) + int_start^end tr(d field / dz) dt.

Any field will do: a network trained by maximum likelihood, through `log_prob` itself, or the
probability flow of a diffusion model (`vdm_jax.flow`), which was never trained by likelihood. A
field must treat each example of its batch on its own. Time may run either way, from a start below
the end or above it.

Needs diffrax, and is therefore not imported by `vdm_jax` itself: `from vdm_jax import cnf`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vdm_jax import divergence, ode
from vdm_jax.divergence import Probes, Trace
from vdm_jax.gaussian import Gaussian
from vdm_jax.ode import Adjoint
from vdm_jax.types import Key, PerExample, Tensor

__all__ = ["Field", "LogProb", "Sample", "as_batch", "log_prob", "sample", "standard_normal"]

Field = Callable[[Tensor, Tensor], Tensor]
"""(t, z) -> dz/dt: a scalar and [batch, *event], to the same shape as z."""


class LogProb(NamedTuple):
    """What `log_prob` returns: densities, where the flow led, and what the solver spent."""

    log_prob: PerExample
    """log p(x), [batch], in nats."""
    z: Tensor
    """The other end of the flow, z(end), [batch, *event]."""
    num_evaluations: Array
    """Evaluations of the field for the whole batch; see `ode.Solution`."""
    num_accepted: Array
    """Steps the solver made."""
    num_rejected: Array
    """Steps it tried and found too coarse."""


class Sample(NamedTuple):
    """What `sample` returns."""

    x: Tensor
    """z(start), [batch, *event]."""
    num_evaluations: Array
    num_accepted: Array
    num_rejected: Array
    """As in `LogProb`."""


def standard_normal(z: Tensor) -> PerExample:
    """log N(z; 0, I) of each example: [batch, *event] -> [batch], in nats."""
    elementwise = Gaussian(jnp.zeros_like(z), jnp.ones_like(z)).log_prob(z)
    return jnp.sum(elementwise, axis=tuple(range(1, z.ndim)))


def log_prob(
    x: Tensor,
    field: Field,
    start: ArrayLike,
    end: ArrayLike,
    base: Callable[[Tensor], PerExample] = standard_normal,
    trace: Trace = "exact",
    key: Key | None = None,
    probes: Probes = "rademacher",
    num_probes: int = 1,
    adjoint: Adjoint = "checkpoint",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> LogProb:
    """log p(x) for each of a batch, x = z(start) being carried to z(end), where `base` is known.

    The step size is such that every example, however large the batch, has an estimated error per
    step below atol + rtol |value|, in the root mean square over z and in the log-density per
    dimension. Differentiable by reverse mode, in x and the times as in what `field` closes over:
    its mean over data is what a flow is trained to raise.

    Args:
      x: points at `start`, [batch, *event]; its dtype is that of the computation.
      field: (t, z) -> dz/dt.
      start, end: scalars, the times of x and of the base, in either order.
      base: z(end) [batch, *event] -> its log-density [batch], in nats.
      trace: "exact", by as many forward derivatives as an event has elements, or "hutchinson", by
        one for each probe: unbiased in log p(x) (Grathwohl et al. 2019).
      key, probes, num_probes: the probes of "hutchinson", drawn once for the whole trajectory and
        independently for each example: "rademacher" (signs) or "gaussian".
      adjoint: how the gradient is computed: "checkpoint" through the solver's steps, or "backsolve"
        by the adjoint equation, in memory that doesn't grow with the steps; see `ode.solve`.
      rtol, atol: relative and absolute tolerance, positive.
      max_steps: steps, accepted or not, after which the solver gives up.

    Returns:
      `LogProb`. Where the solver gave up (max_steps, or a field that is not finite) log_prob and z
      are NaN for the whole batch; an example not finite from the start is NaN by itself.

    Raises:
      ValueError: for a setting out of range, hutchinson without a key, or a field or a base that
        returns another shape.
    """
    x = as_batch(x, "x")
    _check(x, start, end, rtol, atol, max_steps, adjoint)
    divergence.check(trace, key, probes, num_probes)
    dims = math.prod(x.shape[1:])
    noise = None
    if trace == "hutchinson" and key is not None:
        noise = divergence.draw(key, x, probes, num_probes)

    def with_trace(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = state[0]
        dz, tangent = jax.linearize(lambda z: _velocity(field, t, z), z)
        if noise is None:
            return dz, divergence.exact(tangent, z) / dims
        return dz, divergence.hutchinson(tangent, noise) / dims

    state = (x, jnp.zeros(x.shape[:1], x.dtype))
    solution = ode.solve(with_trace, state, start, end, rtol, atol, max_steps, adjoint)
    z, gain = solution.state
    at_end = base(z)
    if jnp.shape(at_end) != gain.shape:
        got = jnp.shape(at_end)
        raise ValueError(f"base must return {list(gain.shape)}, one per example, got shape {got}.")
    counts = (solution.num_evaluations, solution.num_accepted, solution.num_rejected)
    return LogProb(at_end + dims * gain, z, *counts)


def sample(
    z: Tensor,
    field: Field,
    start: ArrayLike,
    end: ArrayLike,
    adjoint: Adjoint = "checkpoint",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> Sample:
    """The flow back, from z = z(end) to x = z(start): of a draw of the base it makes a sample.

    The inverse of `log_prob`'s way, with the same arguments (start is where x is), errors and NaNs.
    """
    z = as_batch(z, "z")
    _check(z, start, end, rtol, atol, max_steps, adjoint)

    def alone(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_velocity(field, t, state[0]),)

    solution = ode.solve(alone, (z,), end, start, rtol, atol, max_steps, adjoint)
    counts = (solution.num_evaluations, solution.num_accepted, solution.num_rejected)
    return Sample(solution.state[0], *counts)


def as_batch(z: ArrayLike, name: str) -> Tensor:
    """`z` as an array. Raises ValueError, calling it `name`, unless it is floats [batch, ...]."""
    z = jnp.asarray(z)
    if z.ndim < 1 or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(f"{name} must be floats [batch, *event], got {z.dtype}{list(z.shape)}.")
    return z


def _check(
    z: Tensor,
    start: ArrayLike,
    end: ArrayLike,
    rtol: float,
    atol: float,
    max_steps: int,
    adjoint: Adjoint,
) -> None:
    """Raises ValueError where something can't be meant, as far as it's known."""
    ode.check(z.dtype, rtol, atol, max_steps, adjoint)
    for name, time in (("start", start), ("end", end)):
        if jnp.shape(time) != ():
            raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(time)}.")
        if not isinstance(time, jax.core.Tracer) and not math.isfinite(float(time)):  # type: ignore[arg-type]
            raise ValueError(f"{name} must be finite, got {time}.")


def _velocity(field: Field, t: Tensor, z: Tensor) -> Tensor:
    dz = jnp.asarray(field(t, z))
    if dz.shape != z.shape:
        raise ValueError(f"field must return {z.shape}, the shape of z, got {dz.shape}.")
    return dz
