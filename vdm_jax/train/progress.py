"""Progress of a command: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Self

from rich import progress
from rich.console import Console

from vdm_jax.train.model import unit_of


class Bar:
    """The progress of `total` things: a live bar on a terminal, a line each tenth elsewhere."""

    def __init__(
        self, words: str, total: int, done: int = 0, console: Console | None = None
    ) -> None:
        self._console = console or Console(highlight=False)
        self._words, self._total, self._done = words, total, done
        self._began = time.monotonic()
        self._bar = progress.Progress(
            words, progress.BarColumn(bar_width=24), progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(), "left", progress.TimeRemainingColumn(),
            "{task.fields[note]}", console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(words, total=total, completed=done, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line, on a terminal above the bar."""
        self._console.print(text, soft_wrap=True, markup=False)

    def advance(self, more: int) -> None:
        """Counts `more` things as done."""
        tenths = self._done * 10 // self._total
        self._done += more
        self._bar.update(self._task, completed=self._done)
        if not self._console.is_terminal and self._done * 10 // self._total > tenths:
            seconds = time.monotonic() - self._began
            self.say(f"{self._words} {self._done}/{self._total}  {seconds:.1f} s")


class TrainingBar(Bar):
    """The progress of a training: steps, their rate, and the bound with its three terms."""

    def __init__(self, total: int, start: int, console: Console | None = None) -> None:
        super().__init__("training", total, start, console)
        self._mark = (start, time.monotonic())

    def move(self, step: int) -> None:
        """Moves the bar to a step."""
        self._bar.update(self._task, completed=step)

    def metrics(self, step: int, scalars: Mapping[str, float]) -> float:
        """Shows the mean metrics of the last steps; returns the rate in steps per second."""
        before, then = self._mark
        self._mark = (step, time.monotonic())
        rate = (step - before) / max(self._mark[1] - then, 1e-9)
        speed, terms = f"{rate:.1f} steps/s", _terms(scalars)
        self._bar.update(self._task, completed=step, note=f"{speed}  {terms}")
        if not self._console.is_terminal:
            left = time.strftime("%H:%M:%S", time.gmtime((self._total - step) / max(rate, 1e-9)))
            self.say(f"step {step}/{self._total}  {speed}  {left} left  {terms}")
        return rate


def _terms(scalars: Mapping[str, float]) -> str:
    """Returns the bound with its parts, and the number of steps that were not applied."""
    words = f"{skipped:.0f} skipped" if (skipped := scalars.get("skipped", 0.0)) else ""
    key = unit_of(scalars).key
    if key not in scalars:  # none was applied
        return words
    names = {key: key, "= recon": "reconstruction", "+ prior": "prior", "+ diff": "diffusion"}
    bound = " ".join(f"{said} {scalars[name]:.3f}" for said, name in names.items())
    return f"{bound}, {words}" if words else bound
