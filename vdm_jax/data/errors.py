"""The one error of this package, and what raises it from many places."""

import contextlib
import os
from pathlib import Path


class DataError(ValueError):
    """A user's mistake, or a data set that can't be had.

    `str(error)` is one line: what came, what was wanted, how to mend it.
    """

    def __init__(self, message: str):
        """Keeps `message`, brought onto one line."""
        super().__init__(" ".join(message.split()))


def reason(error: BaseException, limit: int = 200) -> str:
    """Returns an exception of somebody else's as a short piece of one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def user_path(path: str | os.PathLike[str], argument: str) -> Path:
    """Returns a path as the user gave it, with ~ expanded; DataError where that can't be a path."""
    try:
        expanded = Path(path).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            expanded.stat()  # raises for names that no file system takes
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{argument}={str(path)!r} can't be a path: {reason(error)}") from error
    return expanded
