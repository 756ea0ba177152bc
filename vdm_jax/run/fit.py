"""Training of an own network on own arrays, without a configuration or a command: `fit`."""

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from vdm_jax import checks, errors
from vdm_jax.data import eval_batches, stacked, train_batches
from vdm_jax.data.examples import Examples, check_alike, check_values, examples, fingerprints
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.evaluation.bound import Evaluation
from vdm_jax.run import lock
from vdm_jax.train import loop, sharding, step
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.interrupts import Stop, Stopped
from vdm_jax.train.model import Bound, Model, Params
from vdm_jax.train.progress import Bar
from vdm_jax.train.step import TrainState
from vdm_jax.types import Key

DRAWS, LAST_DRAWS = 4, 32  # of time and noise for each example of an evaluation
LOGS = 20  # of the training's metrics in a run


class Settings(NamedTuple):
    """The numbers of a fit that have a default."""

    batch_size: int = 128  # examples of a step, over all devices
    seed: int = 0  # of the first parameters, the order of the data, times and noise
    ema_rate: float = 0.999  # of the average of the parameters, which is what is returned
    eval_every: int | None = None  # steps between evaluations of `test`; None: at the end alone
    checkpoint_every: int | None = None  # steps between checkpoints; None: at the end alone
    condition_dropout: float = 0.0  # probability that an example's whole condition becomes zeros

    def check(self, mesh: Mesh, has_condition: bool) -> None:
        """Raises ValueError for a number out of its range."""
        sharding.check_batch_size(self.batch_size, mesh)
        checks.count(self.seed, "seed", least=0, most=2**32 - 1)
        for name in ("eval_every", "checkpoint_every"):
            if (every := getattr(self, name)) is not None:
                checks.count(every, name)
        for name in ("ema_rate", "condition_dropout"):
            if not 0.0 <= (value := getattr(self, name)) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value}.")
        if self.condition_dropout and not has_condition:
            raise ValueError("condition_dropout needs data with a condition; there is none.")


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
      optimizer: any of optax.
      steps: of the whole training, those before a restart counted.
      workdir: folder for checkpoints, metrics.jsonl, loss.png and TensorBoard's files.
      test: examples of the same form, to evaluate the bound on.
      **settings: the fields of `Settings`.

    Raises ValueError for data or settings that don't fit, or that aren't those of `workdir`.
    """
    checks.count(steps, "steps")
    given, mesh = Settings(**settings), sharding.make_mesh()
    found = {"data": examples(data, "data")} | (
        {} if test is None else {"test": examples(test, "test")}
    )
    given.check(mesh, "conditioning" in found["data"])
    facts = model.facts(jax.tree.map(lambda leaf: leaf[:1], found["data"]))
    for name, part in found.items():
        check_alike(found["data"], part)
        check_values(part, facts.event_shape, model.pixel_levels or facts.levels, name)
    keys = jax.random.split(jax.random.key(given.seed), 3)
    parts = _Parts(model, given, mesh, Stop(mesh), keys)
    evaluate = parts.evaluator(found["test"], facts) if "test" in found else None
    try:
        with _opened(workdir, given, found["data"]) as (folder, checkpoints):
            run = parts.run(optimizer, steps, found["data"])
            run = run._replace(evaluate=evaluate, workdir=folder, checkpoints=checkpoints)
            state, result = loop.train(run, parts.first_state(optimizer, steps, checkpoints))
    except Stopped as stopped:  # its state is saved: the signal does what it does without us
        signal.raise_signal(stopped.number)
        raise
    return Fitted(state.ema_params, result)


@contextlib.contextmanager
def _opened(
    workdir: str | os.PathLike[str] | None, settings: Settings, train: Examples
) -> Iterator[tuple[Path | None, Checkpoints | None]]:
    """Opens the folder of a run and its checkpoints, which say what the state's path depends on."""
    if workdir is None:
        yield None, None
        return
    folder = errors.user_path(workdir, "workdir")
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"data": fingerprints(train), **settings._asdict()}
    with lock.owned(folder):
        may_differ = ("eval_every", "checkpoint_every")
        checkpoints = Checkpoints(folder / "checkpoints", meta, may_differ=may_differ)
        with checkpoints.full_disk(), checkpoints:
            yield folder, checkpoints


class _Parts(NamedTuple):
    model: Model
    settings: Settings
    mesh: Mesh
    stop: Stop
    keys: Key  # of the first parameters, the training, the evaluation

    def batching(self) -> dict[str, Any]:
        """Returns the size of a batch, and which part of it is this process's."""
        here = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        return {"batch_size": self.settings.batch_size, **here}

    def first_state(
        self, optimizer: optax.GradientTransformation, steps: int, checkpoints: Checkpoints | None
    ) -> TrainState:
        """Returns the state of the newest checkpoint, or a new one."""
        newest = checkpoints.latest_step() if checkpoints else None
        if checkpoints is None or newest is None:
            return step.start(self.model, optimizer, self.keys[0], self.mesh)
        if newest > steps:
            raise ValueError(f"steps is {steps}, but workdir holds a run that is at step {newest}.")
        state = checkpoints.restore(step.abstract_state(self.model, optimizer, self.mesh))
        print(f"going on from step {newest}")
        return state

    def run(self, optimizer: optax.GradientTransformation, steps: int, train: Examples) -> loop.Run:
        """Returns what the loop calls, without an evaluation and a folder."""
        s = self.settings
        every = s.eval_every or steps, steps, s.checkpoint_every or steps
        training = step.Training(
            self.model, optimizer, s.ema_rate, self.keys[1], condition_dropout=s.condition_dropout
        )
        plan = loop.Plan(steps, 1, -(-steps // LOGS), *every, training.max_skipped)
        step_fn = step.make_step(training, self.mesh)
        stream = train_batches(train, seed=s.seed, **self.batching())
        chunks = functools.partial(stacked, stream)
        nothing = None, None, None, None
        return loop.Run(plan, step_fn, training.key, chunks, *nothing, self.mesh, self.stop)

    def evaluator(self, test: Examples, facts: Bound) -> Callable[[TrainState, bool], Evaluation]:
        """Returns the function (state, whether it is the last time) -> the bound on `test`."""
        eval_step = evaluation.make_eval_step(self.model, self.mesh)

        def batches() -> Iterator[Mapping[str, Any]]:
            for batch in eval_batches(test, **self.batching()):
                self.stop.check()
                yield batch

        def evaluate(state: TrainState, last: bool) -> Evaluation:
            repeats, average = LAST_DRAWS if last else DRAWS, state.ema_params
            calls = repeats * -(-len(test["images"]) // self.settings.batch_size)
            with Bar("evaluating", calls) as bar:
                call = bar.counted(eval_step)
                draws = evaluation.collect(call, average, batches, self.mesh, self.keys[2], repeats)
            return evaluation.summarise(draws, facts)

        return evaluate
