"""Continuous normalising flows: the density that any differential equation carries along.

Points that move by dz/dt = field(t, z) take their density with them, and along a path it changes by
(Chen et al. 2018, theorem 1, the instantaneous change of variables)

    d log p(z(t)) / dt = -tr(d field / dz).

So with a base density at t = `end`, that of x = z(start) is

    log p(x) = log base(z(end)) + int_start^end tr(d field / dz) dt.

Any field will do, a network trained by maximum likelihood through `log_prob` or the probability
flow of a diffusion model (`vdm_jax.flow`), as long as it treats each example of its batch on its
own. Time may run either way.

Needs diffrax, and is therefore not imported by `vdm_jax` itself.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks, loss, ode
from vdm_jax.gaussian import Gaussian
from vdm_jax.ode import DEFAULT, Solver, Steps
from vdm_jax.types import Key, PerExample, Tensor

Field = Callable[[Tensor, Tensor], Tensor]
"""(t, z) -> dz/dt: a scalar and [batch, *event], to the same shape as z."""

_COLUMNS = 64  # of the Jacobian computed at once by `exact_trace`: bounds its memory


class LogProb(NamedTuple):
    """Log-densities [batch] in nats, the flow's end z(end) [batch, *event], and its cost."""

    log_prob: PerExample
    z: Tensor
    steps: Steps


class Sample(NamedTuple):
    """The flow's start z(start), [batch, *event], and its cost."""

    z: Tensor
    steps: Steps


def standard_normal(z: Tensor, mask: ArrayLike | None = None) -> PerExample:
    """Returns log N(z; 0, I) of each example: [batch, *event] -> [batch], in nats."""
    return loss.sum_event(Gaussian(jnp.zeros_like(z), jnp.ones_like(z)).log_prob(z), mask)


def log_prob(
    x: Tensor,
    field: Field,
    start: ArrayLike,
    end: ArrayLike,
    base: Callable[[Tensor], PerExample] = standard_normal,
    solver: Solver = DEFAULT,
    key: Key | None = None,
) -> LogProb:
    """Returns log p(x) for each of a batch, x = z(start) being carried to z(end).

    x is [batch, *event], of the dtype of the computation; start and end are scalars in either
    order; `base` gives the log-density [batch] of z(end); `key` the probes of "hutchinson",
    independent for each example. The error of a step is controlled in z and in the log-density per
    dimension (`Solver`). Differentiable by reverse mode, in x and the times as in what `field`
    closes over. Where the solver gave up (max_steps, or a field that is not finite) log_prob and z
    are NaN for the whole batch; an example not finite from the start is NaN by itself.
    """
    x = as_batch(x, "x")
    _check(x, start, end, solver)
    dims = math.prod(x.shape[1:])
    noise = _probes(key, x, solver) if solver.trace == "hutchinson" else None

    def with_trace(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = state[0]
        dz, tangent = jax.linearize(lambda z: _velocity(field, t, z), z)
        trace = exact_trace(tangent, z) if noise is None else hutchinson(tangent, noise)
        return dz, trace / dims

    state = (x, jnp.zeros(x.shape[:1], x.dtype))
    (z, gain), steps = ode.solve(with_trace, state, start, end, solver)
    at_end = base(z)
    if jnp.shape(at_end) != gain.shape:
        got = jnp.shape(at_end)
        raise ValueError(f"base must return {list(gain.shape)}, one per example, got shape {got}.")
    return LogProb(at_end + dims * gain, z, steps)


def sample(
    z: Tensor, field: Field, start: ArrayLike, end: ArrayLike, solver: Solver = DEFAULT
) -> Sample:
    """Returns the flow back, from z = z(end) to z(start); the rest is as for `log_prob`."""
    z = as_batch(z, "z")
    _check(z, start, end, solver)
    (x,), steps = ode.solve(lambda t, at: (_velocity(field, t, at[0]),), (z,), end, start, solver)
    return Sample(x, steps)


def exact_trace(tangent: Callable[[Tensor], Tensor], like: Tensor) -> PerExample:
    """Returns tr J of each example, [batch], from every column of J.

    `tangent` is the derivative J of a map of each example on its own, as `jax.linearize` gives it:
    direction -> J direction, both of the shape of `like`, [batch, *event].
    """
    batch, dims = like.shape[0], math.prod(like.shape[1:])

    def diagonal(i: Tensor) -> PerExample:
        direction = jnp.zeros(dims, like.dtype).at[i].set(1.0).reshape(like.shape[1:])
        return tangent(jnp.broadcast_to(direction, like.shape)).reshape(batch, dims)[:, i]

    return jnp.sum(jax.lax.map(diagonal, jnp.arange(dims), batch_size=min(dims, _COLUMNS)), axis=0)


def hutchinson(tangent: Callable[[Tensor], Tensor], noise: Tensor) -> PerExample:
    """Returns the mean of noise^T J noise, [batch]: unbiased for tr J (Hutchinson 1990).

    noise [num_probes, batch, *event] has mean 0 and covariance I. For a symmetric J the variance of
    one probe is 2 sum_ij J_ij^2 if gaussian; rademacher leaves out i = j.
    """
    products = noise * jax.vmap(tangent)(noise)
    return jnp.mean(jnp.sum(products, axis=tuple(range(2, noise.ndim))), axis=0)


def _probes(key: Key | None, like: Tensor, solver: Solver) -> Tensor:
    """Returns independent probes [num_probes, *shape of like] of mean 0 and covariance I."""
    if key is None:
        raise ValueError("trace='hutchinson' draws probes: give it a key, got key=None.")
    draw = jax.random.normal if solver.probes == "gaussian" else jax.random.rademacher
    return draw(key, (solver.num_probes, *like.shape), like.dtype)


def as_batch(z: ArrayLike, name: str) -> Tensor:
    """Returns `z` as an array. Raises ValueError unless it is floats [batch, ...]."""
    z = jnp.asarray(z)
    if z.ndim < 1 or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(f"{name} must be floats [batch, *event], got {z.dtype}{list(z.shape)}.")
    return z


def _check(z: Tensor, start: ArrayLike, end: ArrayLike, solver: Solver) -> None:
    """Raises ValueError for settings or times that can't be meant."""
    solver.check(z.dtype)
    for name, time in (("start", start), ("end", end)):
        if jnp.shape(time) != ():
            raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(time)}.")
        value = checks.known(time)
        if value is not None and not np.isfinite(value):
            raise ValueError(f"{name} must be finite, got {time}.")


def _velocity(field: Field, t: Tensor, z: Tensor) -> Tensor:
    dz = jnp.asarray(field(t, z))
    if dz.shape != z.shape:
        raise ValueError(f"field must return {z.shape}, the shape of z, got {dz.shape}.")
    return dz
