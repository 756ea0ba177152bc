"""The training loop: calls the compiled step, and at set steps logs, saves, evaluates, samples."""

import collections
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.train import plots, sharding
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.interrupts import Stop, Stopped, Vote
from vdm_jax.train.logging import MetricsLog, read_metrics
from vdm_jax.train.progress import TrainingBar
from vdm_jax.train.step import TrainState, step_key
from vdm_jax.types import Key

NONFINITE = "nonfinite.json"  # with the step that the run could not get past
AHEAD = 2
"""Number of calls that wait on the device: with two it is never idle; without a bound some thirty
would pile up, each with its batch."""


class TrainingError(UserError):
    """A training that can't go on, with the reason."""


class Plan(NamedTuple):
    """The length of a run and the intervals of what happens in it, in steps."""

    steps: int
    steps_per_call: int
    log_every: int
    eval_every: int
    sample_every: int
    checkpoint_every: int
    max_skipped: int

    def next_stop(self, step: int) -> int:
        """Returns the first step after `step` at which a call has to end."""
        return min(self.steps, *((step // n + 1) * n for n in self[1:-1]))

    def due(self, step: int, interval: int) -> bool:
        """Returns whether something is due that happens every `interval` steps and at the end."""
        return step % interval == 0 or step == self.steps


class Run(NamedTuple):
    """All that a run consists of besides its state.

    `batches` takes the first step to a context with an iterator of stacked batches,
    `steps_per_call` each; `evaluate` a state, and whether it is the last time, to an
    `evaluation.bound.Evaluation` on the images `eval_name`. What is None is not done, and without a
    `workdir` nothing is written.
    """

    plan: Plan
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]  # of `train.step.make_step`
    key: Key  # training key of `step`
    batches: Callable[[int], AbstractContextManager[Iterator[Mapping[str, np.ndarray]]]]
    evaluate: Callable[[TrainState, bool], Any] | None
    sample: Callable[[TrainState], np.ndarray] | None  # a uint8 picture [height, width, channels]
    checkpoints: Checkpoints | None  # none is newer than the state the run begins with
    workdir: Path | None
    mesh: Mesh
    stop: Stop
    eval_name: str = "test"
    watched: Callable[[], AbstractContextManager[None]] = nullcontext  # around what may hang


def train(run: Run, state: TrainState) -> tuple[TrainState, Any]:
    """Trains from `state` to `run.plan.steps`; returns the last state and its evaluation.

    What was due at the step of `state` and isn't in `run.workdir` is done first. Raises
    TrainingError after `plan.max_skipped` steps in a row without a finite loss and gradient, the
    state before them saved, and Stopped when the run was asked to stop, its state saved.
    """
    plan, step, result = run.plan, int(state.step), None
    with (
        TrainingBar(plan.steps, step) as bar,
        run.batches(step - step % plan.steps_per_call) as stream,
        run.stop.noted(bar.say),
    ):
        loop = _Loop(run, state, bar)
        try:
            if step:
                result = loop.report()
            chunk: Any = None
            while step < plan.steps:
                with run.watched():
                    if chunk is None or step % plan.steps_per_call == 0:
                        chunk = sharding.put(next(stream), run.mesh, axis=1)
                    step = loop.advance(chunk)
                    if any(plan.due(step, every) for every in plan[2:-1]):
                        loop.finish(0)  # here, as what comes next would wait for it unwatched
                if plan.due(step, plan.log_every):
                    loop.log_metrics()
                # Before what takes a while and may fail.
                if run.checkpoints and plan.due(step, plan.checkpoint_every):
                    run.checkpoints.save(step, loop.state)
                loop.heed()  # after the log, whose line nobody would write later
                result = loop.report() or result
            run.stop.check()
        except (Stopped, BrokenPipeError, SystemExit) as error:  # the latter two: nobody reads on
            if isinstance(error, Stopped) or jax.process_count() == 1:
                _save(loop.state, run.checkpoints)
            raise
    loop.log.close()
    if result is None and run.evaluate:  # nothing was left to do
        result = run.evaluate(loop.state, True)
    return loop.state, result


class _Loop:
    """The state of a run, the calls that are still running, and the metrics not yet logged."""

    def __init__(self, run: Run, state: TrainState, bar: TrainingBar) -> None:
        self.run, self.state, self.bar, self.step = run, state, bar, int(state.step)
        self.log = MetricsLog(run.workdir, self.step)
        self._running: collections.deque[_Call] = collections.deque()
        self._window: list[_Call] = []
        self._votes: list[Vote] = []
        if self.log.damaged:
            bar.say(f"metrics.jsonl: {self.log.damaged} damaged line(s), left out from here on")
        if self.log.replaced:
            bar.say(f"there were metrics but no checkpoint: they are kept in {self.log.replaced}")
        if run.workdir and jax.process_index() == 0:
            (run.workdir / NONFINITE).unlink(missing_ok=True)  # of an earlier start of the run
            if run.sample:  # pictures of later steps, which an earlier start of the run left
                for picture in (run.workdir / "samples").glob(f"{'[0-9]' * 8}.png"):
                    if int(picture.stem) > self.step:
                        picture.unlink()

    def advance(self, chunk: Any) -> int:
        """Calls the compiled step up to the plan's next stop; returns the step of that."""
        plan, first = self.run.plan, self.step
        count, offset = plan.next_stop(first) - first, first % plan.steps_per_call
        vote = self.run.stop.vote()
        self.state, metrics = self.run.step(self.state, chunk, offset, offset + count)
        call = _Call(first, count, metrics, vote)
        self._running.append(call)
        self._window.append(call)
        self.step += count
        self.finish(AHEAD)
        self.bar.move(self.step)
        return self.step

    def finish(self, calls: int) -> None:
        """Waits until no more than `calls` are running, and looks at those that have ended."""
        while len(self._running) > calls:
            call = self._running.popleft()
            for number, in_a_row in call.skipped():
                self.log.note(number, "skipped", key=_key_data(self.run.key, number))
                self.bar.say(f"step {number}: loss or gradient not finite, not applied")
                if in_a_row >= self.run.plan.max_skipped:
                    self.log.close()
                    _give_up(self.run, self.state)
            self._votes.append(call.vote)

    def heed(self) -> None:
        """Raises `Stopped` if the run was asked to stop before a call that has ended."""
        while self._votes:
            self.run.stop.heed(self._votes.pop())

    def log_metrics(self) -> None:
        """Logs the mean metrics of the steps since the last time, which have ended."""
        scalars = _mean(self._window)
        rate = self.bar.metrics(self.step, scalars)
        self.log.write(self.step, "train", scalars | {"steps_per_second": rate})
        self._window = []
        if self.run.checkpoints:
            self.run.checkpoints.check_written()

    def report(self) -> Any:
        """Evaluates and samples if due and not done before; returns the evaluation, or None."""
        run, plan, step, found = self.run, self.run.plan, self.step, None
        evaluated = self.log.has(step, run.eval_name)
        if plan.due(step, plan.eval_every):
            if run.evaluate and not sharding.of_first(evaluated):
                found = run.evaluate(self.state, step == plan.steps)
                self.log.write(step, run.eval_name, found.scalars())
                self.bar.say(f"step {step}: {run.eval_name} {found.unit.name} {found.total}")
            # Also where a kill came between the line and its plot.
            if run.workdir and jax.process_index() == 0:
                metrics = read_metrics(run.workdir / "metrics.jsonl")
                plots.plot_losses(metrics, run.workdir / "loss.png", plan.steps)
        if run.sample and run.workdir and plan.due(step, plan.sample_every):
            picture = run.workdir / "samples" / f"{step:08d}.png"
            if not sharding.of_first(picture.exists()):
                pixels = run.sample(self.state)
                if jax.process_index() == 0:
                    plots.write_image(picture, pixels)
                self.log.image(step, "samples", pixels)
        return found


class _Call(NamedTuple):
    first: int
    steps: int
    metrics: Mapping[str, jax.Array]
    vote: Vote

    def skipped(self) -> list[tuple[int, int]]:
        """Returns (step, how many in a row) of steps not applied; waits for the call."""
        skipped = np.asarray(self.metrics["skipped"])
        offset = self.first % len(skipped)
        return [(self.first + int(i) - offset, int(skipped[i])) for i in np.flatnonzero(skipped)]


def _mean(window: list[_Call]) -> dict[str, float]:
    """Returns the mean metrics of the steps that were applied, and how many were `skipped`."""
    values = jax.device_get([call.metrics for call in window])
    skipped = [np.count_nonzero(value.pop("skipped")) for value in values]
    applied = [call.steps - count for call, count in zip(window, skipped, strict=True)]
    rows = [value for value, count in zip(values, applied, strict=True) if count]
    counts = [count for count in applied if count]
    names = rows[0] if rows else {}
    mean = {name: float(np.average([row[name] for row in rows], weights=counts)) for name in names}
    return mean | {"skipped": float(sum(skipped))}


def _save(state: TrainState, checkpoints: Checkpoints | None) -> None:
    """Saves a state that is newer than all checkpoints."""
    if checkpoints and int(state.step) > (checkpoints.latest_step() or 0):
        checkpoints.save(int(state.step), state)


def _give_up(run: Run, state: TrainState) -> NoReturn:
    """Saves the state before the steps that were skipped, and the first one's number and key."""
    count = int(state.skipped)
    first = int(state.step) - count
    before = state._replace(step=state.step - count, skipped=state.skipped - count)
    _save(before, run.checkpoints)
    saved = run.checkpoints.latest_step() if run.checkpoints else None
    if run.workdir and jax.process_index() == 0:
        key = _key_data(run.key, first)
        found = {"step": first, "in_a_row": count, "checkpoint": saved, "key": key}
        files.write_json(run.workdir / NONFINITE, found)
    at = "there is no checkpoint" if saved is None else f"the newest checkpoint is of {saved}"
    raise TrainingError(
        f"training has diverged: from step {first} on, {count} steps in a row had a loss or "
        f"gradient that isn't finite. None was applied; {at}. Usually a lower learning_rate, or "
        "gradients clipped to a norm of at most 1, help."
    )


def _key_data(key: Key, step: int) -> list[int]:
    """Returns the key of a step's random numbers as jax.random.wrap_key_data takes it."""
    data: list[int] = np.asarray(jax.random.key_data(step_key(key, step))).tolist()
    return data
