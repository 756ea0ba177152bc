"""Progress of a command: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import ClassVar, Self, TypeVar

from rich import progress
from rich.console import Console
from rich.table import Column

from vdm_jax.train.model import unit_of

T = TypeVar("T")


class Bar:
    """The progress of `total` things: a live bar on a terminal, a line each tenth elsewhere.

    A bar that begins while another is open is a row below it, and says nothing elsewhere.
    """

    _first: ClassVar["Bar | None"] = None  # of those that are open

    def __init__(
        self, words: str, total: int, done: int = 0, console: Console | None = None
    ) -> None:
        self._within, self._began = Bar._first, time.monotonic()
        self._words, self._total, self._done, self._start = words, total, done, done
        rows = Bar._first._rows if Bar._first else _new_rows(console or Console(highlight=False))
        self._rows: progress.Progress = rows
        self._console = self._rows.console
        self._row = self._rows.add_task(words, total=total, completed=done, note="")

    def __enter__(self) -> Self:
        if self._within is None:
            Bar._first = self
            self._rows.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._within is None:
            Bar._first = None
            self._rows.stop()
        else:
            self._rows.remove_task(self._row)

    def say(self, text: str) -> None:
        """Prints a line, on a terminal above the bar."""
        self._console.print(text, soft_wrap=True, markup=False)

    def move(self, done: int) -> None:
        """Shows how many things are done."""
        tenths = [count * 10 // self._total for count in (self._done, done)]
        self._done = done
        self._rows.update(self._row, completed=done)
        if tenths[1] > tenths[0] and self._within is None and not self._console.is_terminal:
            now = time.monotonic()
            since = f"{now - self._began:.1f} s"
            self.say(f"{self._words} {done}/{self._total}  {since}  {self._left(done, now)}")

    def _left(self, done: int, now: float) -> str:
        """Returns the time left, as fast as on average until `now`."""
        each = (now - self._began) / max(done - self._start, 1)
        return f"{timedelta(seconds=int((self._total - done) * each))} left"

    def counted(self, call: Callable[..., T]) -> Callable[..., T]:
        """Returns `call`, each of whose calls counts as one thing done."""

        def counting(*given: object) -> T:
            result = call(*given)
            self.move(self._done + 1)
            return result

        return counting


class TrainingBar(Bar):
    """The progress of a training: steps, their rate, and the bound with its three terms."""

    def __init__(self, total: int, start: int, console: Console | None = None) -> None:
        super().__init__("training", total, start, console)
        self._mark = (start, time.monotonic())

    def move(self, done: int) -> None:
        """Moves the bar to a step."""
        self._rows.update(self._row, completed=done)

    def metrics(self, step: int, scalars: Mapping[str, float]) -> float:
        """Shows the mean metrics of the last steps; returns the rate in steps per second."""
        before, then = self._mark
        self._mark = (step, time.monotonic())
        rate = (step - before) / max(self._mark[1] - then, 1e-9)
        speed = f"{rate:.1f} steps/s" if rate >= 1.0 else f"{rate:.2g} steps/s"
        terms = _terms(scalars)
        self._rows.update(self._row, completed=step, note=f"{speed}  {terms}")
        if not self._console.is_terminal:
            left = self._left(step, self._mark[1])
            self.say(f"step {step}/{self._total}  {speed}  {left}  {terms}")
        return rate


def _new_rows(console: Console) -> progress.Progress:
    """Returns what shows a row for each open bar; its last column is cut to the terminal."""
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False), progress.BarColumn(bar_width=8),
        progress.MofNCompleteColumn(), "left", progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}", markup=False, table_column=Column(
            ratio=1, no_wrap=True, overflow="ellipsis")),
        console=console, disable=not console.is_terminal, expand=True, speed_estimate_period=3600,
    )  # fmt: skip


def _terms(scalars: Mapping[str, float]) -> str:
    """Returns the bound with its parts, and the number of steps that were not applied."""
    words = f"{skipped:.0f} skipped" if (skipped := scalars.get("skipped", 0.0)) else ""
    key = unit_of(scalars).key
    if key not in scalars:  # none was applied
        return words
    names = {key: key, "= recon": "reconstruction", "+ prior": "prior", "+ diff": "diffusion"}
    bound = " ".join(f"{said} {scalars[name]:.3f}" for said, name in names.items())
    return f"{bound}, {words}" if words else bound
