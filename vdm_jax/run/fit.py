"""Training of a user's network on a user's arrays, without a configuration or a command: `fit`."""

import contextlib
import functools
import inspect
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vdm_jax import checks, errors
from vdm_jax.data import eval_batches, stacked, train_batches
from vdm_jax.data.examples import Examples, check_alike, check_values, examples, fingerprints
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.evaluation.bound import Draws, Evaluation
from vdm_jax.run import build, experiment
from vdm_jax.train import loop, step
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.interrupts import Stop, Stopped
from vdm_jax.train.model import Bound, Model, Params
from vdm_jax.train.step import TrainState

DRAWS, LAST_DRAWS = 4, 32  # of time and noise for each example of an evaluation
LOGS = 20  # of the training's metrics in a run


class Settings(NamedTuple):
    """The numbers of a fit that have a default."""

    batch_size: int = 128  # examples of a step, over all devices
    seed: int = 0  # of the first parameters, the order of the data, times and noise
    ema_rate: float = 0.999  # of the average of the parameters, which is what is returned
    condition_dropout: float = 0.0  # probability that an example's whole condition becomes zeros
    eval_every: int | None = None  # steps between evaluations of `test`; None: at the end alone
    checkpoint_every: int | None = None  # steps between checkpoints; None: at the end alone


class Fitted(NamedTuple):
    """The average of the parameters (EMA) after the last step, and its evaluation."""

    params: Params
    evaluation: Evaluation | None  # the bound on `test` with standard errors; None without it


def fit(
    model: Model,
    data: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
    workdir: str | os.PathLike[str] | None = None,
    test: Any = None,
    **settings: Any,
) -> Fitted:
    """Returns the model's parameters after `steps` steps on the bound of `data`.

    With a `workdir` the same call goes on from the newest checkpoint there, and ends with the same
    bits as one that was never stopped; without it nothing is written. Ctrl-C leaves a checkpoint.

    Args:
      model: functions `init(key) -> params`, any pytree of arrays, and `bind(params, conditioning,
        dropout, mask) -> VDM`; dropout is a key in training, and mask is given if the data have it.
      data: an array x [n, *event], integers or floats, or a mapping with "x", and if there are any
        "condition", a pytree with leaves [n, ...], and "mask" [n, ...], broadcastable to x, with 1
        where x is there and 0 for padding.
      optimizer: of optax, any whose update takes (gradients, state, parameters).
      steps: of the whole training, those before a restart counted.
      workdir: folder for checkpoints, metrics.jsonl, loss.png and TensorBoard's files.
      test: examples of the same form, to evaluate the bound on.
      **settings: the fields of `Settings`.

    Raises ValueError for data or settings that don't fit, or that aren't those of `workdir`.
    """
    mesh, train = build.make_mesh(), examples(data, "data")
    given, steps = _checked(settings, steps, mesh, train)
    _check_model(model, given.ema_rate, train)
    facts = model.facts(jax.tree.map(lambda leaf: leaf[:1], train))
    levels = model.pixel_levels or facts.levels
    check_values(train, facts.event_shape, levels, "data")
    stop, keys = Stop(mesh), jax.random.split(jax.random.key(given.seed), 3)
    size, evaluate = given.batch_size, None
    if test is not None:
        held_out = examples(test, "test")
        check_alike(train, held_out)
        check_values(held_out, facts.event_shape, levels, "test")
        batches = functools.partial(eval_batches, held_out, batch_size=size)
        number = -(-len(held_out["images"]) // size)
        draw = experiment.drawer(model, batches, number, mesh, stop, keys[2])
        evaluate = _evaluator(draw, facts, held_out.get("mask"))
    dropping = model.dropping(given.condition_dropout)
    training = step.Training(dropping, optimizer, given.ema_rate, keys[1])
    stream = train_batches(train, batch_size=size, seed=given.seed)
    every = given.eval_every or steps, steps, given.checkpoint_every or steps
    plan = loop.Plan(steps, 1, -(-steps // LOGS), *every, training.max_skipped)
    calls = plan, step.make_step(training, mesh), keys[1], functools.partial(stacked, stream)
    try:
        with _opened(workdir, given, train, steps) as (folder, checkpoints):
            state = experiment.first_state(model, optimizer, keys[0], mesh, checkpoints)
            run = loop.Run(*calls, evaluate, None, checkpoints, folder, mesh, stop)
            state, result = loop.train(run, state)
    except Stopped as stopped:  # its state is saved: the signal does what it does without us
        signal.raise_signal(stopped.number)
        raise
    return Fitted(state.ema_params, result)


def _checked(
    settings: dict[str, Any], steps: int, mesh: Mesh, train: Examples
) -> tuple[Settings, int]:
    """Returns both without NumPy's numbers. Raises ValueError for a number out of its range."""
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}
    of = Settings(**plain)
    checks.count(steps, "steps")
    build.check_batch_size(of.batch_size, mesh, name="batch_size")
    checks.count(of.eval_every or 1, "eval_every")
    checks.count(of.checkpoint_every or 1, "checkpoint_every")
    for rate, name in ((of.ema_rate, "ema_rate"), (of.condition_dropout, "condition_dropout")):
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {rate}.")
    if of.condition_dropout and "conditioning" not in train:
        raise ValueError("condition_dropout needs data with a condition; there is none.")
    return of, int(steps)


def _check_model(of: Model, ema_rate: float, train: Examples) -> None:
    """Raises ValueError for a `bind` of other arguments, or parameters that can't be trained."""
    masked = {"mask": None} if "mask" in train else {}
    try:
        inspect.signature(of.bind).bind(None, None, None, **masked)
    except TypeError as error:
        names = ", ".join(("params", "conditioning", "dropout", *masked))
        raise ValueError(f"bind must take ({names}): {error}.") from error
    returned: list[Params] = []
    jax.eval_shape(lambda key: returned.append(of.init(key)), jax.random.key(0))
    for leaf in jax.tree.leaves(returned):
        if not jnp.issubdtype(kind := getattr(leaf, "dtype", type(leaf)), jnp.inexact):
            hint = "eqx.filter(module, eqx.is_inexact_array) or nnx.state(module, nnx.Param)"
            raise ValueError(f"init must return arrays of floats alone, not {kind}: {hint}.")
        if jnp.finfo(kind).bits < 32 and ema_rate:
            hint = "their average would stand still. Let only the computation be in less"
            raise ValueError(f"init must return floats of 32 bits or more, not {kind}: {hint}.")


@contextlib.contextmanager
def _opened(
    workdir: str | os.PathLike[str] | None, settings: Settings, train: Examples, steps: int
) -> Iterator[tuple[Path | None, Checkpoints | None]]:
    """Opens the folder of a run and its checkpoints, which say what the state's path depends on."""
    if workdir is None:
        yield None, None
        return
    folder = errors.user_path(workdir, "workdir")
    folder = build.make_workdir(folder)
    meta = {"data": fingerprints(train), **settings._asdict()}
    with build.owned(folder) if jax.process_index() == 0 else contextlib.nullcontext():
        may_differ = ("eval_every", "checkpoint_every")
        checkpoints = Checkpoints(folder / "checkpoints", meta, may_differ=may_differ)
        with checkpoints.full_disk(), checkpoints:
            if steps < (at := checkpoints.latest_step() or 0):
                raise ValueError(f"steps is {steps}, but workdir holds a run that is at step {at}.")
            yield folder, checkpoints


def _evaluator(
    draw: Callable[[TrainState, int], Draws], facts: Bound, mask: Any
) -> Callable[[TrainState, bool], Evaluation]:
    """Returns the function (state, whether it is the last time) -> the bound on `test`."""
    return lambda state, last: evaluation.summarise(
        draw(state, LAST_DRAWS if last else DRAWS), facts, mask=mask
    )
