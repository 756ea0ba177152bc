"""The parts of a training run: optimiser, compiled step, batches, evaluation, samples."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax import data
from vdm_jax.data import ImageData
from vdm_jax.errors import UserError
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.evaluation.bound import Draws, Evaluation
from vdm_jax.evaluation.sample_quality import conditioning_of
from vdm_jax.evaluation.subject import Batches, Subject
from vdm_jax.train import loop, memory, optimizer, plots, sharding, step
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.interrupts import Stop
from vdm_jax.train.model import Model
from vdm_jax.train.progress import Bar
from vdm_jax.train.step import TrainState


class Experiment(NamedTuple):
    """A configuration and what it describes; `stop` tells whether the run was asked to stop."""

    config: ConfigDict
    images: ImageData
    mesh: Mesh
    model: Model
    optimizer: optax.GradientTransformation
    workdir: Path
    stop: Stop


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimiser that `config.optimizer` describes."""
    c = config.optimizer
    rate = optimizer.learning_rate(c.learning_rate, c.warmup_steps, c.decay, decay_steps(config))
    decay_gamma = config.model.gamma_objective != "variance"
    numbers = (c.b1, c.b2), c.eps, c.weight_decay, c.clip_norm
    return optimizer.make(rate, *numbers, decay_gamma, c.name)


def decay_steps(config: ConfigDict) -> int:
    """Returns where the learning rate's decay ends; 0 if it has none, as nothing depends on it."""
    if config.optimizer.decay == "none":
        return 0
    given: int | None = config.optimizer.decay_steps
    return config.train.steps if given is None else given


def keys_of(config: ConfigDict) -> dict[str, jax.Array]:
    """Returns a key for each purpose, all of the one seed."""
    names = ("init", "train", "eval", "sample")
    return dict(zip(names, jax.random.split(jax.random.key(config.seed), 4), strict=True))


def plan(config: ConfigDict) -> loop.Plan:
    """Returns when what happens."""
    c, every = config.train, (config.eval.every, config.sample.every)
    numbers = c.steps, c.steps_per_call, c.log_every, *every, c.checkpoint_every, c.max_skipped
    return loop.Plan(*numbers)


def compiled_step(experiment: Experiment) -> jax.stages.Compiled:
    """Returns the training step compiled from shapes alone: nothing is put on the devices."""
    return traced_step(experiment).lower().compile()


def traced_step(experiment: Experiment) -> jax.stages.Traced:
    """Returns the training step traced with the shapes of its state and batches."""
    config, images, mesh, model, adamw, *_ = experiment
    c = config.train
    key, ema_rate = keys_of(config)["train"], config.optimizer.ema_rate
    numbers = c.accumulate, c.steps_per_call, c.max_skipped
    training = step.Training(model, adamw, ema_rate, key, *numbers)
    size = c.steps_per_call, c.batch_size
    first = _stream(config, images)[0]
    chunk = jax.tree.map(lambda of: jax.ShapeDtypeStruct((*size, *of.shape[1:]), of.dtype), first)
    state = step.abstract_state(model, adamw, mesh)
    return step.make_step(training, mesh).trace(state, chunk, 0, 1)


def _stream(config: ConfigDict, images: ImageData) -> Any:
    return data.train_batches(
        images.examples("train"),
        batch_size=config.train.batch_size,
        seed=config.seed,
        transform=data.augmented(config.data.augment, images.event_shape),
    )


def chunks(config: ConfigDict, images: ImageData) -> Callable[[int], Any]:
    """Returns the function step -> context with the batches from there on, one call's stacked."""
    batches, calls = _stream(config, images), config.train.steps_per_call
    return lambda start: data.stacked(batches, start, calls)


def first_state(
    model: Model, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh,
    checkpoints: Checkpoints | None,
) -> TrainState:  # fmt: skip
    """Returns the state of the newest checkpoint, or a new one."""
    if checkpoints is None or checkpoints.latest_step() is None:
        return step.start(model, optimizer, key, mesh)
    state = checkpoints.restore(step.abstract_state(model, optimizer, mesh))
    print(f"going on from step {int(state.step)}")
    return state


def drawer(
    model: Model, batches: Batches, calls: int, mesh: Mesh, stop: Stop, key: jax.Array
) -> Callable[[TrainState, int], Draws]:
    """Returns the function (state, repeats) -> draws of the bound on the batches, `calls` many."""
    eval_step = evaluation.make_eval_step(model, mesh)

    def checked() -> Iterator[Mapping[str, np.ndarray]]:
        for batch in batches():
            stop.check()
            yield batch

    def draw(state: TrainState, repeats: int) -> Draws:
        with Bar("evaluating", repeats * calls) as bar:
            call, params = bar.counted(eval_step), state.ema_params
            return cast(Draws, evaluation.collect(call, params, checked, mesh, key, repeats))

    return draw


def evaluator(experiment: Experiment, key: jax.Array) -> Callable[[TrainState, bool], Evaluation]:
    """Returns the function (state, whether it is the last time) -> the bound on the test set."""
    config, images, mesh, model, *_, stop = experiment
    c = config.eval
    subject = Subject(model, None, images, c.batch_size, mesh)
    draw = drawer(model, subject.batches(), subject.calls(1), mesh, stop, key)

    def evaluate(state: TrainState, last: bool) -> Evaluation:
        with _lower("evaluation", "eval.batch_size", c.batch_size, state):
            repeats = c.final_repeats if last else c.repeats
            if last:
                print(f"final evaluation: {len(images.test)} images, {repeats} draws each")
            draws = draw(state, repeats)
            return evaluation.summarise(draws, model.bind(state.ema_params), subject.groups)

    return evaluate


def compiled_sampler(experiment: Experiment, key: jax.Array) -> jax.stages.Wrapped:
    """Returns the function params -> samples, compiled over the mesh."""
    config, images, mesh, model, *_ = experiment
    conditioning = conditioning_of(np.arange(config.sample.count), images.turns())

    def draw(params: object) -> jax.Array:
        given = jax.numpy.asarray(conditioning)
        whole_params = sharding.gathered(mesh, params)
        return model.sample(whole_params, key, given, config.sample.num_steps)

    return jax.jit(draw, out_shardings=sharding.replicated(mesh))


def sampler(experiment: Experiment, key: jax.Array) -> Callable[[TrainState], np.ndarray]:
    """Returns the function state -> a picture of samples."""
    config, images, *_, stop = experiment
    compiled, count = compiled_sampler(experiment, key), config.sample.count

    def sample(state: TrainState) -> np.ndarray:
        many = f" in {config.sample.num_steps} steps each" * (config.hierarchy.depth is None)
        print(f"drawing {count} samples{many}", flush=True)
        with _lower("sampling", "sample.count", count, state):
            drawn = compiled(state.ema_params)
            stop.wait_for(drawn)
            return plots.image_grid(np.asarray(drawn), images.levels)

    return sample


def _lower(
    what: str, setting: str, value: int, state: TrainState
) -> contextlib.AbstractContextManager[None]:
    """Names the setting to lower where the block runs out of memory; waits for `state` before."""
    jax.block_until_ready(state)  # so that no error of a training step is taken for one of these
    message = f"lower --config.{setting}, now {value}, to go on from the newest checkpoint"
    return memory.exhausted(lambda said: UserError(f"{what} ran out of memory ({said}): {message}"))
