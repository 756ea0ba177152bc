"""Training of an own network on own arrays, without a configuration or a command: `fit`."""

import contextlib
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
from vdm_jax.data.examples import Examples, check_values, examples, fingerprints
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.evaluation.bound import Evaluation
from vdm_jax.run import lock
from vdm_jax.train import loop, sharding, step
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.interrupts import Stop, Stopped
from vdm_jax.train.model import Bound, Model, Params
from vdm_jax.train.progress import Bar
from vdm_jax.train.step import TrainState

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
    given, mesh, parts = Settings(**settings), sharding.make_mesh(), {"data": data, "test": test}
    found = {name: examples(part, name) for name, part in parts.items() if part is not None}
    given.check(mesh, "conditioning" in found["data"])
    facts = model.facts({name: leaf[:1] for name, leaf in found["data"].items()})
    for name, part in found.items():
        check_values(part, facts.event_shape, model.pixel_levels or facts.levels, name)
    of = _Fit(model, optimizer, given, mesh, Stop(mesh))
    try:
        with _opened(workdir, given, found["data"]) as (folder, checkpoints):
            run = of.run(steps, found, facts)
            run = run._replace(workdir=folder, checkpoints=checkpoints)
            state, result = loop.train(run, of.first_state(steps, checkpoints))
    except Stopped as stopped:  # its state is saved: the signal does what it does without us
        signal.raise_signal(stopped.number)
        raise
    return Fitted(state.ema_params, result)


@contextlib.contextmanager
def _opened(
    workdir: str | os.PathLike[str] | None, settings: Settings, train: Examples
) -> Iterator[tuple[Path | None, Checkpoints | None]]:
    """Opens the folder of a run and its checkpoints, which hold what the state's path depends on."""
    if workdir is None:
        yield None, None
        return
    folder = errors.user_path(workdir, "workdir")
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"data": fingerprints(train), **settings._asdict()}
    may_differ = ("eval_every", "checkpoint_every")
    with lock.owned(folder):
        checkpoints = Checkpoints(folder / "checkpoints", meta, may_differ=may_differ)
        with checkpoints.full_disk(), checkpoints:
            yield folder, checkpoints


class _Fit(NamedTuple):
    model: Model
    optimizer: optax.GradientTransformation
    settings: Settings
    mesh: Mesh
    stop: Stop

    def key(self, name: str) -> jax.Array:
        """Returns the key of a purpose."""
        names = ("init", "train", "eval")
        return jax.random.split(jax.random.key(self.settings.seed), 3)[names.index(name)]

    def first_state(self, steps: int, checkpoints: Checkpoints | None) -> TrainState:
        """Returns the state of the newest checkpoint, or a new one."""
        newest = checkpoints.latest_step() if checkpoints else None
        if checkpoints is None or newest is None:
            return step.start(self.model, self.optimizer, self.key("init"), self.mesh)
        if newest > steps:
            raise ValueError(
                f"steps is {steps}, but the run in workdir is at step {newest} already: give more "
                "steps, or another workdir."
            )
        template = step.abstract_state(self.model, self.optimizer, self.mesh)
        state = checkpoints.restore(template)
        print(f"going on from step {newest}")
        return state

    def run(self, steps: int, parts: Mapping[str, Examples], facts: Bound) -> loop.Run:
        """Returns what the loop calls, without a folder."""
        s = self.settings
        every = s.eval_every or steps, steps, s.checkpoint_every or steps
        training = step.Training(
            self.model, self.optimizer, s.ema_rate, self.key("train"),
            condition_dropout=s.condition_dropout,
        )  # fmt: skip
        plan = loop.Plan(steps, 1, -(-steps // LOGS), *every, training.max_skipped)
        stream = train_batches(
            parts["data"],
            batch_size=s.batch_size,
            seed=s.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return loop.Run(
            plan, step.make_step(training, self.mesh), training.key,
            lambda start: stacked(stream, start),
            self.evaluator(parts["test"], facts) if "test" in parts else None,
            None, None, None, self.mesh, self.stop,
        )  # fmt: skip

    def evaluator(self, test: Examples, facts: Bound) -> Callable[[TrainState, bool], Evaluation]:
        """Returns the function (state, whether it is the last time) -> the bound on `test`."""
        eval_step = evaluation.make_eval_step(self.model, self.mesh)
        size, key = self.settings.batch_size, self.key("eval")

        def batches() -> Iterator[Mapping[str, Any]]:
            where = {"process_index": jax.process_index(), "process_count": jax.process_count()}
            for batch in eval_batches(test, batch_size=size, **where):
                self.stop.check()
                yield batch

        def evaluate(state: TrainState, last: bool) -> Evaluation:
            number = LAST_DRAWS if last else DRAWS
            with Bar("evaluating", number * -(-len(test["images"]) // size)) as bar:
                call, average = bar.counted(eval_step), state.ema_params
                draws = evaluation.collect(call, average, batches, self.mesh, key, number)
            return evaluation.summarise(draws, facts)

        return evaluate
