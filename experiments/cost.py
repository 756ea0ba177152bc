"""What a step costs, counted in the program that JAX traces: nothing is compiled or measured.

The program of a training step is a list of operations on arrays of known shapes. Counted in it are
the multiplications and additions of convolutions and matrix products, and the bytes that are alive
at the worst moment if each operation's result is an array.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from ml_collections import ConfigDict

from experiments.models import make_model
from vdm_jax.train import step

__all__ = ["Cost", "Event", "of_gradient", "operations", "peak"]

Event = tuple[int, ...]
"""Height, width and channels of an image."""


class Cost(NamedTuple):
    """Of the gradient of one micro-batch, on the device that computes it."""

    flops: float
    """Multiplications and additions of convolutions and matrix products, with all that is
    computed once more."""
    peak: int
    """Bytes of intermediate results and of the gradient, at the worst moment."""


def of_gradient(config: ConfigDict, event_shape: Event, batch: int) -> Cost:
    """Of `batch` images of that shape, with the settings of `config.model`."""
    model = make_model(config, event_shape, 256)
    params = jax.eval_shape(model.init, jax.random.key(0))
    images = {
        "images": jax.ShapeDtypeStruct((batch, *event_shape), jnp.uint8),
        "conditioning": jax.ShapeDtypeStruct((batch,), jnp.float32),
    }
    traced = jax.make_jaxpr(step.gradient(model))(params, images, jax.random.key(1))
    return Cost(operations(traced.jaxpr), peak(traced.jaxpr))


# ---- operations ----


def operations(jaxpr: core.Jaxpr) -> float:
    """Multiplications and additions of its convolutions and matrix products, loops unrolled."""
    total = 0.0
    for equation in jaxpr.eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += _own_operations(equation)
        total += times * sum(operations(inner) for inner in _inner(equation))
    return total


def _own_operations(equation: core.JaxprEqn) -> float:
    """Two for each product, all that a kernel's margin falls on counted with it."""
    name, outputs = equation.primitive.name, [math.prod(_shape(v)) for v in equation.outvars]
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * outputs[0] * math.prod(_shape(equation.invars[0])[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = _shape(equation.invars[1]), equation.params["dimension_numbers"]
        return 2.0 * outputs[0] * math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    return 0.0


def _shape(v: Any) -> tuple[int, ...]:
    return v.aval.shape


def _inner(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The programs that an operation is made of."""
    for value in jax.tree.leaves(
        list(equation.params.values()),
        is_leaf=lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr),
    ):
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


# ---- memory ----


def peak(jaxpr: core.Jaxpr) -> int:
    """Bytes of all results that are alive at the worst moment, in the order of the program.

    A result is alive from where it is computed to where it is used last, or to the end if it is a
    result of the whole. Arguments are the caller's and not counted.
    """
    last: dict[Any, int] = {}
    for number, equation in enumerate(jaxpr.eqns):
        last |= {v: number for v in equation.invars if isinstance(v, core.Var)}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if isinstance(v, core.Var)}
    ends: dict[int, list[Any]] = {}
    computed = {v for equation in jaxpr.eqns for v in equation.outvars}
    for v, number in last.items():
        if v in computed:
            ends.setdefault(number, []).append(v)

    alive, most = 0, 0
    for number, equation in enumerate(jaxpr.eqns):
        inside = max((peak(inner) - _results(inner) for inner in _inner(equation)), default=0)
        kept = sum(_size(v) for v in equation.outvars if v in last)
        alive += kept
        most = max(most, alive + max(inside, 0))
        alive -= sum(_size(v) for v in ends.get(number, []))
    return most


def _results(jaxpr: core.Jaxpr) -> int:
    return sum(_size(v) for v in jaxpr.outvars if isinstance(v, core.Var))


def _size(v: Any) -> int:
    """Bytes of an array; keys of random numbers, and what is not computed, have none."""
    dtype = getattr(v.aval, "dtype", None)
    return int(v.aval.size) * getattr(dtype, "itemsize", 0)
