"""What Orbax and TensorStore print when they fail: tracebacks of what they raise as well.

One write or read that fails leaves others behind, and Python complains of each when it ends or is
let go, at any later time and from any thread. What is raised is said in one line; nothing else of
it is worth a screen.
"""

import logging
import sys
import warnings
from typing import Any

__all__ = ["quieten"]


def quieten() -> None:
    """From here on what is only a repetition isn't printed; it may be called again."""
    logging.getLogger("absl").addFilter(_not_of_orbax)
    logging.getLogger("asyncio").addFilter(_not_of_orbax)
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


def _not_of_orbax(line: logging.LogRecord) -> bool:
    return not (line.exc_info and ("orbax" in line.pathname or "orbax" in line.getMessage()))
