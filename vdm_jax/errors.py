"""The errors that a user can mend: one base class, one line each."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class UserError(ValueError):
    """Something that the user can mend; the message is one line: what came, what was wanted."""

    def __init__(self, message: str):
        """Keeps `message`, brought onto one line."""
        super().__init__(" ".join(message.split()))


def reason(error: BaseException, limit: int = 200) -> str:
    """Returns an exception of somebody else's as a short piece of one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def user_path(path: str | os.PathLike[str], argument: str) -> Path:
    """Returns a path as the user gave it, with ~ expanded; UserError where that can't be a path."""
    try:
        expanded = Path(path).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            expanded.stat()  # raises for names that no file system takes
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{argument}={str(path)!r} can't be a path: {reason(error)}") from error
    return expanded


@contextlib.contextmanager
def reaching(path: Path, how: str = "reached") -> Iterator[None]:
    """Raises UserError where `path` can't be looked at within the block, as without permission."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be {how}: {error.strerror or error}") from error
