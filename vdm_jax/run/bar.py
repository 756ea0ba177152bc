"""How far a command is."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bar"]


class Bar:
    """Of `total` things: a live bar on a terminal, a line each tenth elsewhere."""

    def __init__(self, words: str, total: int, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._words = words
        self._total, self._done, self._began = total, 0, time.monotonic()
        self._bar = Progress(
            TextColumn(words),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(words, total=total)

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, more: int) -> None:
        """So many more."""
        tenths = self._done * 10 // self._total
        self._done += more
        self._bar.update(self._task, completed=self._done)
        if not self._console.is_terminal and self._done * 10 // self._total > tenths:
            seconds = time.monotonic() - self._began
            self._console.print(
                f"{self._words} {self._done}/{self._total}  {seconds:.1f} s", soft_wrap=True
            )
