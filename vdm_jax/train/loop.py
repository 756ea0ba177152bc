"""The training loop: calls the compiled step, and at set steps logs, evaluates, samples, saves."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax.train import interrupts, report, sharding
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.evaluation import Evaluation
from vdm_jax.train.progress import ProgressDisplay
from vdm_jax.train.step import TrainState

__all__ = ["Plan", "TrainingError", "train"]

AHEAD = 2
"""Calls that wait on the device. With two it is never idle, and the next batch goes there while
one runs; without a bound some thirty would pile up, each with its batch."""

Chunks = Callable[[int], AbstractContextManager[Iterator[Mapping[str, np.ndarray]]]]


class TrainingError(RuntimeError):
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
    eval_name: str = "test",
) -> tuple[TrainState, Evaluation]:
    """Train from `state` to `plan.steps`, and return the last state and its evaluation.

    Args:
      step_fn: made by `vdm_jax.train.step.make_step`.
      chunks: first step -> context with an iterator of stacked batches, see that function.
      evaluate: (state, whether it's the last time) -> Evaluation of its EMA parameters.
      sample: state -> uint8 picture of samples, [height, width, channels].
      checkpoints: where to save; anything newer than `state` must not be there.
      workdir: gets metrics.jsonl, tensorboard/, loss.png, samples/.

    Raises:
      TrainingError: if the loss is no longer finite. Nothing is saved of such a state.
      KeyboardInterrupt: after the step in which Ctrl-C was pressed.
    """
    step = int(state.step)
    log = report.MetricsLog(workdir, step)
    result = None
    pending: list[tuple[int, dict[str, jax.Array]]] = []
    first_of_chunk = step - step % plan.steps_per_call
    with (
        ProgressDisplay(plan.steps, step) as display,
        chunks(first_of_chunk) as stream,
        interrupts.noted(display.say) as stop_if_asked,
    ):
        chunk: Any = None
        while step < plan.steps:
            stop_if_asked()
            if chunk is None or step % plan.steps_per_call == 0:
                chunk = sharding.put(next(stream), mesh, axis=1)
            stop, offset = plan.next_stop(step), step % plan.steps_per_call
            state, metrics = step_fn(state, chunk, offset, offset + stop - step)
            pending.append((stop - step, metrics))
            jax.block_until_ready([metrics for _, metrics in pending[-1 - AHEAD : -AHEAD]])
            step = stop
            display.advance(step)
            if plan.due(step, plan.log_every):
                scalars = _mean(pending)
                pending = []
                _check_finite(scalars, step, checkpoints)
                rate = display.metrics(step, scalars)
                log.write(step, "train", scalars | {"steps_per_second": rate})
            if plan.due(step, plan.eval_every):
                result = evaluate(state, step == plan.steps)
                log.write(step, eval_name, result.scalars())
                display.say(f"step {step}: {eval_name} {result.unit.name} {result.total}")
                report.plot_losses(
                    report.read_metrics(workdir / "metrics.jsonl"), workdir / "loss.png"
                )
            if plan.due(step, plan.sample_every):
                picture = sample(state)
                report.write_image(workdir / "samples" / f"{step:08d}.png", picture)
                log.image(step, "samples", picture)
            if plan.due(step, plan.checkpoint_every):
                # Last, so that whoever goes on from it finds all that was due before it done.
                _check_finite(_mean(pending[-1:]), step, checkpoints)
                checkpoints.save(step, state)
    log.close()
    if result is None:  # nothing was left to do
        result = evaluate(state, True)
    return state, result


def _mean(pending: list[tuple[int, dict[str, jax.Array]]]) -> dict[str, float]:
    """Mean over steps of the metrics of several calls; waits for the device."""
    if not pending:
        return {}
    counts = [count for count, _ in pending]
    values = jax.device_get([metrics for _, metrics in pending])
    return {k: float(np.average([v[k] for v in values], weights=counts)) for k in values[0]}


def _check_finite(scalars: Mapping[str, float], step: int, checkpoints: Checkpoints) -> None:
    for name, value in scalars.items():
        if not math.isfinite(value):
            saved = checkpoints.latest_step()
            raise TrainingError(
                f"{name} is {value} at step {step}: training has diverged. The last good "
                f"checkpoint is {'none' if saved is None else f'of step {saved}'}; a lower "
                "learning_rate, or a clip_norm of 1.0 or less, usually helps."
            )
