"""What the user can mend."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["UserError", "reaching"]


class UserError(ValueError):
    """Something the user can mend; the message is one line."""


@contextlib.contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Raise UserError where the block finds that `path` can't be looked at: no permission, say."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be reached: {error.strerror or error}") from error
