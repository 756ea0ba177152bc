"""Progress of a command: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import ClassVar, Self

from rich import progress
from rich.console import Console
from rich.table import Column
from rich.text import Text

from vdm_jax.train.model import unit_of

SHORTEST = 6  # characters of a bar: what is said beside it leaves it as many


class Bar:
    """The progress of `total` things: a live bar on a terminal, a line each tenth elsewhere.

    A bar that begins while another is open is a row below it, and says nothing elsewhere.
    """

    _open: ClassVar[list["Bar"]] = []

    def __init__(
        self, words: str, total: int, done: int = 0, console: Console | None = None
    ) -> None:
        self._outer = self._open[0] if self._open else None
        self._console = self._outer._console if self._outer else console or Console(highlight=False)
        self._words, self._total, self._done, self._start = words, total, done, done
        self._began = time.monotonic()
        self._live = self._outer._live if self._outer else self._new_live()
        self._task: progress.TaskID | None = None

    def _new_live(self) -> progress.Progress:
        return progress.Progress(
            progress.TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            progress.BarColumn(bar_width=None), _Fitting(Column(no_wrap=True)),
            console=self._console, disable=not self._console.is_terminal, expand=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._task = self._live.add_task(
            self._words, total=self._total, completed=self._done, bar=self
        )
        self._open.append(self)
        if not self._outer:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._outer and self._task is not None:
            self._live.remove_task(self._task)
        else:
            self._live.stop()
        self._open.remove(self)

    def say(self, text: str) -> None:
        """Prints a line, on a terminal above the bar."""
        self._console.print(text, soft_wrap=True, markup=False)

    def move(self, done: int) -> None:
        """Shows how many things are done."""
        before, self._done = self._done, done
        if self._task is not None:
            self._live.update(self._task, completed=done)
        self._tell(before)

    def advance(self, more: int) -> None:
        """Counts `more` things as done."""
        self.move(self._done + more)

    def rate(self) -> float:
        """Returns the things done in a second, on average; 0 before the first."""
        return (self._done - self._start) / max(time.monotonic() - self._began, 1e-9)

    def ways_to_say(self) -> list[str]:
        """Returns what stands beside the bar, from the longest to the shortest way to say it."""
        rate = self.rate()
        left = f"  {duration((self._total - self._done) / rate)} left" if rate > 0 else ""
        return [f"{self._done}/{self._total}{left}"]

    def _tell(self, before: int) -> None:
        """Prints a line where there is no bar, each tenth."""
        tenths = [done * 10 // self._total for done in (before, self._done)]
        if not self._outer and not self._console.is_terminal and tenths[1] > tenths[0]:
            seconds = time.monotonic() - self._began
            self.say(f"{self._words} {self._done}/{self._total}  {seconds:.1f} s")


class TrainingBar(Bar):
    """The progress of a training: steps, their rate, and the bound with its three terms."""

    def __init__(self, total: int, start: int, console: Console | None = None) -> None:
        super().__init__("training", total, start, console)
        self._mark, self._rate = (start, time.monotonic()), 0.0
        self._scalars: Mapping[str, float] = {}

    def metrics(self, step: int, scalars: Mapping[str, float]) -> float:
        """Shows the mean metrics of the last steps; returns the rate in steps per second."""
        before, then = self._mark
        self._mark = (step, time.monotonic())
        self._rate = (step - before) / max(self._mark[1] - then, 1e-9)
        self._scalars = scalars
        self.move(step)
        if not self._console.is_terminal:
            self.say(f"step {self.ways_to_say()[0]}")
        return self._rate

    def rate(self) -> float:
        """Returns the steps a second of the last metrics; before them, on average."""
        return self._rate or super().rate()

    def ways_to_say(self) -> list[str]:
        """Returns step, rate, time left and metrics; of the metrics the bound, then none."""
        done, rate = f"{self._done}/{self._total}", self.rate()
        if rate > 0:
            left = duration((self._total - self._done) / rate)
            done += f"  {rate:.1f} steps/s  {left} left"
        return [f"{done}  {part}".rstrip() for part in _metrics(self._scalars)]

    def _tell(self, before: int) -> None:
        pass  # `metrics` does


class _Fitting(progress.ProgressColumn):
    """The longest way to say how far a bar is that leaves room for it and its name."""

    def render(self, task: progress.Task) -> Text:
        """Returns the words of one bar."""
        bar: Bar = task.fields["bar"]
        room = bar._console.width - max(len(one._words) for one in bar._open) - SHORTEST - 2
        ways = bar.ways_to_say()
        return Text(next((way for way in ways if len(way) <= room), ways[-1]))


def duration(seconds: float) -> str:
    """Returns a time as in 00:05:12, or 11 d 03:05:12."""
    days, rest = divmod(int(seconds), 24 * 3600)
    return f"{days} d " * (days > 0) + time.strftime("%H:%M:%S", time.gmtime(rest))


def _metrics(scalars: Mapping[str, float]) -> list[str]:
    """Returns the bound with its parts and the steps that were not applied; the bound; nothing."""
    words = f"{skipped:.0f} skipped" if (skipped := scalars.get("skipped", 0.0)) else ""
    key = unit_of(scalars).key
    if key not in scalars:  # none was applied
        return [words, ""]
    names = {key: key, "= recon": "reconstruction", "+ prior": "prior", "+ diff": "diffusion"}
    parts = [f"{said} {scalars[name]:.3f}" for said, name in names.items()]
    ends = f", {words}" if words else ""
    return [" ".join(parts) + ends, parts[0] + ends, parts[0], ""]
