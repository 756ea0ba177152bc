"""No tracebacks on the screen of what Orbax and TensorStore raise as well, at any later time."""

import logging
import sys
import warnings
from typing import Any


def quieten() -> None:
    """Keeps from printing, from here on, what repeats an error that is raised already."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)
    before = sys.unraisablehook
    if getattr(before, "__module__", None) == __name__:
        return

    def hook(unraisable: Any, /) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        closed = str(unraisable.exc_value) == "Event loop is closed"
        if not closed and "orbax" not in getattr(code, "co_filename", ""):
            before(unraisable)

    sys.unraisablehook = hook


def _is_news(line: logging.LogRecord) -> bool:
    return not (line.exc_info and ("orbax" in line.pathname or "orbax" in line.getMessage()))
