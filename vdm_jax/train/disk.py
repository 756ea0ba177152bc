"""A full disk: how it shows, what is said of it, and files that are whole or not there."""

import errno
import os
import re
import shutil
from pathlib import Path

__all__ = ["full", "number", "write_whole"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def number(error: BaseException) -> int | None:
    """The errno of an OSError, or of TensorStore, which raises a ValueError and names it there."""
    if isinstance(error, OSError):
        return error.errno
    named = re.search(r"os_error_code='(\d+)'", str(error))
    return int(named[1]) if named else None


def full(error: BaseException, folder: Path) -> str | None:
    """What to say if `error` means that nothing more can be written to `folder`, else None.

    That is no space, a quota, or a limit on a file's size.
    """
    code = number(error)
    if code not in _FULL:
        return None
    try:
        free = f"; {shutil.disk_usage(folder).free / 2**20:,.1f} MiB are free"
    except OSError:
        free = ""
    return f"{folder} can't be written to: {os.strerror(code)}{free}"


def write_whole(path: Path, text: str) -> None:
    """Write a file in one go: after a crash or on a full disk the old one is there, whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
