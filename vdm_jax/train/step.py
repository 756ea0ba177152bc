"""The training state and the compiled step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from vdm_jax import loss
from vdm_jax.train import objective, schedule_variance, sharding
from vdm_jax.train.model import Batch, Bound, Model, Params, unit
from vdm_jax.train.objective import Seen
from vdm_jax.types import Key

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a run is besides its configuration: whoever has it can go on bit for bit.

    `step` counts the steps done; data order and random numbers are functions of it and the seed.
    `skipped` counts the last of them, in a row, that were not applied. With times that adapt
    `opt_state` is a pair: the optimiser's state, and what was seen of the loss.
    """

    step: jax.Array
    params: Params
    ema_params: Params
    opt_state: Any
    skipped: jax.Array


def init_state(model: Model, optimizer: optax.GradientTransformation, key: Key) -> TrainState:
    """Returns the state before the first step; its EMA parameters are a copy of the parameters."""
    params = model.init(key)
    ema_params = jax.tree.map(jnp.copy, params)  # its own memory: a step donates both
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    opt_state = optimizer.init(params)
    if model.adaptive:
        opt_state = opt_state, objective.nothing_seen()
    return TrainState(step, params, ema_params, opt_state, skipped)


def abstract_state(
    model: Model, optimizer: optax.GradientTransformation, mesh: Mesh | AbstractMesh
) -> TrainState:
    """Returns the shapes of that state, and where each leaf lies."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0)))
    return sharding.placed(mesh, shapes)


def start(
    model: Model, optimizer: optax.GradientTransformation, key: Key, mesh: Mesh
) -> TrainState:
    """Returns `init_state` over a mesh: no device ever holds more than its share."""
    shares = sharding.of_parameters(mesh, abstract_state(model, optimizer, mesh))
    return jax.jit(lambda key: init_state(model, optimizer, key), out_shardings=shares)(key)


class Training(NamedTuple):
    """The constants of a training step."""

    model: Model
    optimizer: optax.GradientTransformation
    ema_rate: float
    key: Key  # of all random numbers of the training; each step's own is `step_key`
    accumulate: int = 1  # micro-batches, one after the other, whose mean gradient a step takes
    steps_per_call: int = 1  # batches in a chunk, the most steps of a call of the program
    max_skipped: int = 10  # steps in a row, not applied, after which nothing changes


def update(
    state: TrainState, batch: Batch, training: Training, mesh: Mesh | AbstractMesh | None = None
) -> tuple[TrainState, Metrics]:
    """Returns the state after one optimiser step on the mean bound of `batch`, and its metrics.

    A step whose loss or gradient isn't finite is not applied: it is counted in `step` and
    `skipped`, and all else stays. Parameters that are split over `mesh` are gathered once. Metrics
    are `bpd` (`nats_per_dim` for a density), its three terms, and the norm of the gradient.
    """
    chex.assert_equal_shape_prefix(jax.tree.leaves(batch), 1)
    whole_params = sharding.gathered(mesh, state.params)
    # Convolutions inside a loop are many times slower on a CPU: there the loop is unrolled.
    unroll = training.accumulate if sharding.platform(mesh) == "cpu" else 1
    opt_state, seen = state.opt_state if training.model.adaptive else (state.opt_state, None)
    compute = _accumulated(_gradient(training.model, seen), training.accumulate, unroll)
    grads, (metrics, new) = compute(whole_params, batch, step_key(training.key, state.step))
    # Summed whole, of which each device takes its share: left to itself a TPU's compiler takes
    # convolutions to pieces, whose sums go around in a ring. All that follows is of the shares, so
    # that a TPU's sum of what isn't stacked is a reduce-scatter.
    grads = sharding.shared(mesh, sharding.gathered(mesh, grads))
    updates, opt_state = training.optimizer.update(grads, opt_state, state.params)
    if seen is not None:
        opt_state = opt_state, seen.then(new)
    params = optax.apply_updates(state.params, updates)
    ema_params = ema_update(state.ema_params, params, training.ema_rate)
    metrics["grad_norm"] = optax.tree.norm(grads)

    frozen = state.skipped >= training.max_skipped
    finite = jnp.isfinite(jnp.stack(list(metrics.values()))).all()
    skipped = jnp.where(frozen, state.skipped, jnp.where(finite, 0, state.skipped + 1))
    new = TrainState(state.step, params, ema_params, opt_state, skipped)
    old = state._replace(skipped=skipped)
    kept = jax.tree.map(lambda now, before: jnp.where(skipped == 0, now, before), new, old)
    return kept._replace(step=jnp.where(frozen, state.step, state.step + 1)), metrics


def step_key(key: Key, step: jax.Array | int) -> Key:
    """Returns the key of a step: all its random numbers are functions of it."""
    return jax.random.fold_in(key, step)


def _gradient(
    model: Model, seen: Seen | None
) -> Callable[[Params, Batch, Key], tuple[Params, tuple[Metrics, Seen | None]]]:
    """Returns (params, batch, key) -> (gradient for what `model` is trained for, aux).

    `aux` are the `_metrics`, and what times that adapt see of the loss. The gradient of the bound
    is that of the mean nats of an example, whatever its mask leaves.
    """

    def bound(params: Params, batch: Batch, key: Key) -> tuple[jax.Array, tuple[Metrics, None]]:
        key_elbo, key_dropout = jax.random.split(key)
        bound = model.bind_batch(params, batch, key_dropout)
        terms = bound.elbo(key_elbo, model.data(batch["images"]))
        return unit(bound).of(terms.total.mean(), bound.event_shape), (_metrics(bound, terms), None)

    def compute(
        params: Params, batch: Batch, key: Key
    ) -> tuple[Params, tuple[Metrics, Seen | None]]:
        new = None
        if model.end_points is None:
            grads, (terms, new) = objective.gradient(model, seen)(params, batch, key)
        else:
            grads, terms = schedule_variance.gradient(model)(params, batch, key)
        return grads, (_metrics(model.bind_batch(params, batch), terms), new)

    plain = model.end_points is None and model.weight is None and seen is None
    return jax.grad(bound, has_aux=True) if plain else compute


def _metrics(bound: Bound, terms: loss.ElboTerms) -> Metrics:
    """Returns the mean bound and its terms, in its unit; with a mask of what is there."""
    of = functools.partial(unit(bound).of, event_shape=bound.event_shape)
    mean = jax.tree.map(lambda nats: of(nats, mask=getattr(bound, "mask", None)).mean(), terms)
    return {unit(bound).key: mean.total, **mean._asdict()}


def ema_update(average: Params, params: Params, rate: float) -> Params:
    """Returns the moving average: average + (1 - rate) (params - average)."""
    # A parameter that stands still leaves its average alone, without rounding errors.
    return jax.tree.map(lambda old, new: old + (1.0 - rate) * (new - old), average, params)


def _accumulated(gradient: Callable, parts: int, unroll: int) -> Callable:
    """Returns the mean of `gradient` over `parts` interleaved parts of the batch; `Seen` add up."""
    if parts == 1:
        return gradient

    def mean_gradient(params: Params, batch: Batch, key: Key) -> Any:
        # Rows i, i + parts, ...: each part is spread over all devices, as the batch is.
        split = jax.tree.map(lambda v: v.reshape(-1, parts, *v.shape[1:]).swapaxes(0, 1), batch)
        keys = jax.random.split(key, parts)
        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda v: v[0], split), key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def body(total: Any, part: tuple[Batch, Key]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *part)), None

        total, _ = jax.lax.scan(body, zeros, (split, keys), unroll=unroll)
        grads, (metrics, seen) = total
        grads, metrics = jax.tree.map(lambda leaf: leaf / parts, (grads, metrics))
        return grads, (metrics, seen)

    return mean_gradient


def make_step(training: Training, mesh: Mesh | AbstractMesh) -> jax.stages.Wrapped:
    """Returns `update` compiled over a mesh: step(state, chunk, start, stop) -> (state, metrics).

    `chunk`'s leaves are [steps_per_call, batch, ...], the second axis split over the devices; the
    batches start, ..., stop - 1 are used, and the metrics are the mean of the steps applied. Beside
    these, `skipped`, int [steps_per_call], is `state.skipped` after each step, 0 where none was
    done. The bounds are no constants of the program, so a run is the same bit for bit wherever its
    calls begin and end. `state` is donated, and lies as `sharding.of_parameters` has it.
    """

    def one(state: TrainState, chunk: Batch, i: jax.Array | int) -> tuple[TrainState, Metrics]:
        at = functools.partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
        return update(state, jax.tree.map(at, chunk), training, mesh)

    def many(
        state: TrainState, chunk: Batch, start: jax.Array, stop: jax.Array
    ) -> tuple[TrainState, Metrics]:
        chex.assert_tree_shape_prefix(chunk, (training.steps_per_call,))
        if training.steps_per_call == 1:
            state, metrics = one(state, chunk, 0)
            return state, {**metrics, "skipped": state.skipped[None]}
        _, shapes = jax.eval_shape(one, state, chunk, 0)
        zeros = {k: jnp.zeros(leaf.shape, leaf.dtype) for k, leaf in shapes.items()}

        def body(i: jax.Array, carry: tuple) -> tuple:
            state, total, skipped = carry
            state, metrics = one(state, chunk, i)
            # Not times 0: what wasn't applied is not finite.
            applied = {k: jnp.where(state.skipped == 0, v, 0.0) for k, v in metrics.items()}
            return state, jax.tree.map(jnp.add, total, applied), skipped.at[i].set(state.skipped)

        none = jnp.zeros(training.steps_per_call, jnp.int32)
        state, total, skipped = jax.lax.fori_loop(start, stop, body, (state, zeros, none))
        applied = jnp.maximum(stop - start - jnp.count_nonzero(skipped), 1)
        mean = jax.tree.map(lambda leaf: leaf / applied, total)
        return state, {**mean, "skipped": skipped}

    whole, split = sharding.replicated(mesh), sharding.split_over(mesh, axis=1)
    shares = sharding.of_parameters(mesh, abstract_state(training.model, training.optimizer, mesh))
    ins, outs = (shares, split, whole, whole), (shares, whole)
    return jax.jit(many, donate_argnums=0, in_shardings=ins, out_shardings=outs)
