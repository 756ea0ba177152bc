"""The training state and the compiled step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vdm_jax import loss
from vdm_jax.train import sharding, variance
from vdm_jax.train.model import Batch, Model, Params, Trainable
from vdm_jax.types import Key

__all__ = [
    "Metrics",
    "TrainState",
    "abstract_state",
    "ema_update",
    "init_state",
    "make_step",
    "start",
    "update",
]

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a run is besides its configuration: whoever has it can go on bit for bit.

    `step` counts the updates done; data order and random numbers are functions of it and the seed.
    """

    step: jax.Array
    params: Params
    ema_params: Params
    opt_state: Any


def init_state(model: Trainable, optimizer: optax.GradientTransformation, key: Key) -> TrainState:
    """The state before the first step; EMA parameters start as a copy of the parameters."""
    params = model.init(key)
    ema_params = jax.tree.map(jnp.copy, params)  # its own memory: a step donates both
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params))


def abstract_state(
    model: Trainable, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The shapes of the state before the first step, and where each leaf lies."""
    shapes = jax.eval_shape(lambda key: init_state(model, optimizer, key), jax.random.key(0))
    return sharding.placed(mesh, shapes)


def start(
    model: Trainable, optimizer: optax.GradientTransformation, key: Key, mesh: Mesh
) -> TrainState:
    """`init_state` over a mesh: no device ever holds more than its share."""
    shardings = sharding.of_parameters(mesh, abstract_state(model, optimizer, mesh))
    init = jax.jit(lambda key: init_state(model, optimizer, key), out_shardings=shardings)
    return init(key)


def update(
    state: TrainState,
    batch: Batch,
    model: Trainable,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    key: Key,
    accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
    """One optimiser step on the mean bound of `batch`, in the model's unit: a pure function.

    With `model.end_points` the schedule's shape is trained for a low variance instead.

    Random numbers come from `key` folded with `state.step`. With `accumulate` > 1 the gradient is
    the mean over that many micro-batches, one after the other. Metrics are scalars: the loss
    `bpd` (`nats_per_dim` for a density), its three terms, and the norm of the gradient.
    """
    key = jax.random.fold_in(key, state.step)
    gradient = _accumulated(_gradient(model), accumulate)
    grads, metrics = gradient(state.params, batch, key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = ema_update(state.ema_params, params, ema_rate)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return TrainState(state.step + 1, params, ema_params, opt_state), metrics


def _gradient(model: Trainable) -> Callable[[Params, Batch, Key], tuple[Params, Metrics]]:
    """(params, batch, key) -> (gradient of what `model` is trained for, mean terms in its unit)."""

    def bound(params: Params, batch: Batch, key: Key) -> tuple[jax.Array, loss.ElboTerms]:
        terms = model.terms(params, batch, key, dropout=True)
        return model.unit.of(terms.total.mean(), model.event_shape), terms

    if isinstance(model, Model) and model.end_points is not None:
        compute: Callable = variance.gradient(model)
    else:
        compute = jax.grad(bound, has_aux=True)

    def gradient(params: Params, batch: Batch, key: Key) -> tuple[Params, Metrics]:
        grads, terms = compute(params, batch, key)
        mean = jax.tree.map(lambda nats: model.unit.of(nats.mean(), model.event_shape), terms)
        return grads, {model.unit.key: mean.total, **mean._asdict()}

    return gradient


def ema_update(average: Params, params: Params, rate: float) -> Params:
    """Exponential moving average: average + (1 - rate) (params - average).

    In this form a parameter that stands still leaves its average alone; rate * average +
    (1 - rate) * params would add a rounding error to it at every step.
    """
    return jax.tree.map(lambda old, new: old + (1.0 - rate) * (new - old), average, params)


def _accumulated(gradient: Callable, parts: int) -> Callable:
    """Mean of `gradient(params, part, key)` over `parts` interleaved parts of the batch."""
    if parts == 1:
        return gradient

    def mean_gradient(params: Params, batch: Batch, key: Key) -> Any:
        # Rows i, i + parts, ...: each part is spread over all devices, as the batch is.
        split = {k: v.reshape(-1, parts, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}
        keys = jax.random.split(key, parts)
        shapes = jax.eval_shape(gradient, params, {k: v[0] for k, v in split.items()}, key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def body(total: Any, part: tuple[Batch, Key]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *part)), None

        # Convolutions inside a loop are many times slower on a CPU: there the loop is unrolled.
        unroll = parts if jax.default_backend() == "cpu" else 1
        total, _ = jax.lax.scan(body, zeros, (split, keys), unroll=unroll)
        return jax.tree.map(lambda leaf: leaf / parts, total)

    return mean_gradient


def make_step(
    model: Trainable,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    key: Key,
    mesh: Mesh,
    accumulate: int = 1,
    steps_per_call: int = 1,
) -> jax.stages.Wrapped:
    """Compile `update` over a mesh: step(state, chunk, start, stop) -> (state, metrics).

    `chunk` holds `steps_per_call` batches, its leaves [steps_per_call, batch, ...] with the second
    axis split over the devices; those numbered start, ..., stop - 1 are used, one after the other,
    and the metrics are their mean. The bounds are no constants of the compiled program, so a run
    is the same bit for bit wherever its calls begin and end. `state` is donated, and lies on the
    devices as `sharding.of_parameters` has it.
    """

    def one(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return update(state, batch, model, optimizer, ema_rate, key, accumulate)

    def at(chunk: Batch, i: jax.Array | int) -> Batch:
        return {k: jax.lax.dynamic_index_in_dim(v, i, keepdims=False) for k, v in chunk.items()}

    def many(
        state: TrainState, chunk: Batch, start: jax.Array, stop: jax.Array
    ) -> tuple[TrainState, Metrics]:
        if steps_per_call == 1:
            return one(state, at(chunk, 0))
        _, shapes = jax.eval_shape(one, state, at(chunk, 0))
        zeros = {k: jnp.zeros(leaf.shape, leaf.dtype) for k, leaf in shapes.items()}

        def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = one(carry[0], at(chunk, i))
            return state, jax.tree.map(jnp.add, carry[1], metrics)

        state, total = jax.lax.fori_loop(start, stop, body, (state, zeros))
        return state, jax.tree.map(lambda leaf: leaf / (stop - start), total)

    whole, split = sharding.replicated(mesh), sharding.split_over(mesh, axis=1)
    shares = sharding.of_parameters(mesh, abstract_state(model, optimizer, mesh))
    return jax.jit(
        many,
        donate_argnums=0,
        in_shardings=(shares, split, whole, whole),
        out_shardings=(shares, whole),
    )
