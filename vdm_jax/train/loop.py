"""The training loop: calls the compiled step, and at set steps logs, saves, evaluates, samples."""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax.errors import UserError
from vdm_jax.evaluation.bound import Evaluation
from vdm_jax.train import report, sharding
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.interrupts import Stop, Stopped, Vote
from vdm_jax.train.progress import ProgressDisplay
from vdm_jax.train.step import TrainState, step_key
from vdm_jax.types import Key

__all__ = ["NONFINITE", "Plan", "TrainingError", "train"]

NONFINITE = "nonfinite.json"
"""In a run's folder: the step that it could not get past."""

AHEAD = 2
"""Calls that wait on the device. With two it is never idle, and the next batch goes there while
one runs; without a bound some thirty would pile up, each with its batch."""

Chunks = Callable[[int], AbstractContextManager[Iterator[Mapping[str, np.ndarray]]]]


class TrainingError(UserError):
    """Training can't go on; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a run lasts and what happens when, in steps."""

    steps: int
    steps_per_call: int
    log_every: int
    eval_every: int
    sample_every: int
    checkpoint_every: int
    max_skipped: int

    def next_stop(self, step: int) -> int:
        """The first step after `step` at which a call has to end."""
        intervals = (
            self.steps_per_call,
            self.log_every,
            self.eval_every,
            self.sample_every,
            self.checkpoint_every,
        )
        return min(self.steps, *((step // n + 1) * n for n in intervals))

    def due(self, step: int, interval: int) -> bool:
        """Whether something that happens every `interval` steps, and at the end, is due."""
        return step % interval == 0 or step == self.steps


def train(
    state: TrainState,
    step_fn: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    chunks: Chunks,
    evaluate: Callable[[TrainState, bool], Evaluation],
    sample: Callable[[TrainState], np.ndarray],
    plan: Plan,
    checkpoints: Checkpoints,
    workdir: Path,
    mesh: Mesh,
    stop: Stop,
    key: Key,
    eval_name: str = "test",
) -> tuple[TrainState, Evaluation]:
    """Train from `state` to `plan.steps`, and return the last state and its evaluation.

    What was due at the step of `state` and isn't in `workdir` is done first.

    Args:
      step_fn: made by `vdm_jax.train.step.make_step`.
      chunks: first step -> context with an iterator of stacked batches, see that function.
      evaluate: (state, whether it's the last time) -> Evaluation of its EMA parameters.
      sample: state -> uint8 picture of samples, [height, width, channels].
      checkpoints: where to save; anything newer than `state` must not be there.
      workdir: gets metrics.jsonl, tensorboard/, loss.png, samples/.
      stop: tells whether the run was asked to stop; `evaluate` and `sample` may ask it too.
      key: the training key of `step_fn`, of which skipped steps are logged.

    Raises:
      TrainingError: after `plan.max_skipped` steps in a row without a finite loss and gradient.
        The state before them has been saved, and the first of them is told in `NONFINITE`.
      Stopped: when the run was asked to; its state has been saved.
    """
    step = int(state.step)
    log = report.MetricsLog(workdir, step)
    if jax.process_index() == 0:
        (workdir / NONFINITE).unlink(missing_ok=True)  # of a life of the run that has ended
    result = None
    running: collections.deque[_Call] = collections.deque()
    window: list[_Call] = []
    votes: list[Vote] = []

    def observe() -> Evaluation | None:
        found = None
        if plan.due(step, plan.eval_every) and not sharding.of_first(log.has(step, eval_name)):
            found = evaluate(state, step == plan.steps)
            log.write(step, eval_name, found.scalars())
            display.say(f"step {step}: {eval_name} {found.unit.name} {found.total}")
            if jax.process_index() == 0:
                metrics = report.read_metrics(workdir / "metrics.jsonl")
                report.plot_losses(metrics, workdir / "loss.png")
        picture = workdir / "samples" / f"{step:08d}.png"
        if plan.due(step, plan.sample_every) and not sharding.of_first(picture.exists()):
            pixels = sample(state)
            if jax.process_index() == 0:
                report.write_image(picture, pixels)
            log.image(step, "samples", pixels)
        return found

    def finish(calls: int) -> None:
        """Wait until no more than so many are running, and look at those that have ended."""
        while len(running) > calls:
            call = running.popleft()
            for number, in_a_row in call.skipped():
                log.note(number, "skipped", key=_words(key, number))
                display.say(f"step {number}: loss or gradient not finite, not applied")
                if in_a_row >= plan.max_skipped:
                    _give_up(state, key, log, checkpoints, workdir)
            votes.append(call.vote)

    with (
        ProgressDisplay(plan.steps, step) as display,
        chunks(step - step % plan.steps_per_call) as stream,
        stop.noted(display.say),
    ):
        try:
            if step:
                result = observe()
            chunk: Any = None
            while step < plan.steps:
                if chunk is None or step % plan.steps_per_call == 0:
                    chunk = sharding.put(next(stream), mesh, axis=1)
                until, offset = plan.next_stop(step), step % plan.steps_per_call
                vote = stop.vote()
                state, metrics = step_fn(state, chunk, offset, offset + until - step)
                running.append(_Call(step, until - step, metrics, vote))
                window.append(running[-1])
                step = until
                finish(AHEAD)
                display.advance(step)
                if plan.due(step, plan.log_every):
                    finish(0)
                    scalars = _mean(window)
                    rate = display.metrics(step, scalars)
                    log.write(step, "train", scalars | {"steps_per_second": rate})
                    window = []
                    checkpoints.check_written()
                if plan.due(step, plan.checkpoint_every):
                    # First: what follows takes a while, and may fail.
                    finish(0)
                    checkpoints.save(step, state)
                while votes:  # behind the log, whose line nobody would write later
                    stop.heed(votes.pop())
                result = observe() or result
            stop.check()
        except Stopped:
            _save(state, checkpoints)
            raise
    log.close()
    if result is None:  # nothing was left to do
        result = evaluate(state, True)
    return state, result


class _Call(NamedTuple):
    """A call of the compiled step that may still be running."""

    first: int
    steps: int
    metrics: Mapping[str, jax.Array]
    vote: Vote

    def skipped(self) -> list[tuple[int, int]]:
        """(step, how many in a row) of those that were not applied; waits for the call."""
        skipped = np.asarray(self.metrics["skipped"])
        offset = self.first % len(skipped)
        return [(self.first + int(i) - offset, int(skipped[i])) for i in np.flatnonzero(skipped)]


def _mean(window: list[_Call]) -> dict[str, float]:
    """Mean metrics of the steps that were applied, and how many were `skipped`."""
    values = jax.device_get([call.metrics for call in window])
    skipped = [np.count_nonzero(value.pop("skipped")) for value in values]
    applied = [call.steps - count for call, count in zip(window, skipped, strict=True)]
    rows = [(value, count) for value, count in zip(values, applied, strict=True) if count]
    counts = [count for _, count in rows]
    names = rows[0][0] if rows else {}
    mean = {name: float(np.average([v[name] for v, _ in rows], weights=counts)) for name in names}
    return mean | {"skipped": float(sum(skipped))}


def _save(state: TrainState, checkpoints: Checkpoints) -> int | None:
    """Save the state if the newest checkpoint is older; the newest one's step, None without any."""
    step, newest = int(state.step), checkpoints.latest_step()
    if step <= (newest or 0):
        return newest
    checkpoints.save(step, state)
    return step


def _give_up(
    state: TrainState, key: Key, log: report.MetricsLog, checkpoints: Checkpoints, workdir: Path
) -> NoReturn:
    """Leave the state before the steps that were skipped, and what is needed to do one again."""
    count = int(state.skipped)
    first = int(state.step) - count
    before = state._replace(step=state.step - count, skipped=state.skipped - count)
    saved = _save(before, checkpoints)
    log.close()
    if jax.process_index() == 0:
        found = {"step": first, "in_a_row": count, "checkpoint": saved, "key": _words(key, first)}
        (workdir / NONFINITE).write_text(json.dumps(found) + "\n")
    at = "no step was applied before" if saved is None else f"the newest checkpoint is of {saved}"
    raise TrainingError(
        f"training has diverged: from step {first} on, {count} steps in a row had a loss or "
        f"gradient that isn't finite. None of them was applied; {at}."
    )


def _words(key: Key, step: int) -> list[int]:
    """The random numbers' key of a step, as jax.random.wrap_key_data takes it."""
    data: list[int] = np.asarray(jax.random.key_data(step_key(key, step))).tolist()
    return data
