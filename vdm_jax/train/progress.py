"""The progress of a run on the screen: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vdm_jax.train.model import unit_of

__all__ = ["ProgressDisplay"]


class ProgressDisplay:
    """Step, rate, time left, and the current bits per dim with its three terms."""

    def __init__(self, total: int, start: int, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._total = total
        self._mark = (start, time.monotonic())
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=total, completed=start, rate="", terms="")

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar, or just a line."""
        self._console.print(text, soft_wrap=True, markup=False)

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step)

    def metrics(self, step: int, scalars: Mapping[str, float]) -> float:
        """Show the mean metrics of the last steps; returns the rate in steps per second."""
        before, then = self._mark
        now = time.monotonic()
        rate = (step - before) / max(now - then, 1e-9)
        self._mark = (step, now)
        terms = _terms(scalars)
        self._bar.update(self._task, completed=step, rate=f"{rate:.1f} steps/s", terms=terms)
        if not self._console.is_terminal:
            left = time.strftime("%H:%M:%S", time.gmtime((self._total - step) / max(rate, 1e-9)))
            self.say(f"step {step}/{self._total}  {rate:.1f} steps/s  {left} left  {terms}")
        return rate


def _terms(scalars: Mapping[str, float]) -> str:
    """The bound with its parts, and how many steps were not applied."""
    words = f"{skipped:.0f} skipped" if (skipped := scalars.get("skipped", 0.0)) else ""
    key = unit_of(scalars).key
    if key not in scalars:  # none was applied
        return words
    bound = (
        f"{key} {scalars[key]:.3f} = recon {scalars['reconstruction']:.3f} + "
        f"prior {scalars['prior']:.3f} + diff {scalars['diffusion']:.3f}"
    )
    return f"{bound}, {words}" if words else bound
