"""Files that are written whole or not at all, and how a full disk shows."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vdm_jax.errors import UserError, reaching, reason
from vdm_jax.signals import ENDING, deferred, handlers

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def number(error: BaseException) -> int | None:
    """Returns the errno of an OSError, or of TensorStore, which names it in a ValueError."""
    if isinstance(error, OSError):
        return error.errno
    named = re.search(r"os_error_code='(\d+)'", str(error))
    return int(named[1]) if named else None


def full(error: BaseException, folder: Path) -> str | None:
    """Returns a message if `error` is a full disk, quota or limit on a file's size, else None."""
    code = number(error)
    if code not in _FULL:
        return None
    try:
        free = f"; {shutil.disk_usage(folder).free / 2**20:,.1f} MiB are free"
    except OSError:
        free = ""
    return f"{folder} can't be written to: {os.strerror(code)}{free}"


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one go: after a crash or on a full disk the old one is still there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[Path]:
    """Yields a path beside `out` to write a file or folder to; it becomes `out` at the end.

    A block that fails, or that Ctrl-C or one of `signals.ENDING` ends, leaves nothing. Raises
    UserError where `out` is there already, or by then, or can't be written.
    """
    check_free(out)
    partial = out.with_name(f".partial-{os.getpid()}-{secrets.token_hex(4)}")
    with handlers(ENDING, _end):
        try:
            yield partial
            with deferred():
                check_free(out)  # it may have been made meanwhile
                partial.rename(out)
        except OSError as error:
            why = error.strerror or reason(error)
            said = full(error, out.parent) or f"{out} can't be written: {why}"
            raise UserError(f"{said}; nothing was written") from error
        finally:
            with deferred():
                shutil.rmtree(partial, ignore_errors=True)  # a folder; and a file
                with contextlib.suppress(OSError):
                    partial.unlink()
    with contextlib.suppress(OSError):  # not every file system can
        sync(out.parent)


@contextlib.contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """Yields a new file, which is on the disk when the block ends."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Brings the names that are in a folder onto the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _end(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough, and the rest is removed
    print(f"error: terminated ({signal.Signals(number).name})", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def check_free(out: Path) -> None:
    """Raises UserError unless `out` can be made: it isn't there, but a folder to write it to is."""
    with reaching(out):
        if os.path.lexists(out):
            raise UserError(
                f"{out} is there already and is left alone; name another, or move it away"
            )
        if not out.parent.is_dir():
            raise UserError(f"{out.parent} is no folder; make it first, or write somewhere else")
    with reaching(out.parent, "written to"):
        try_writing(out.parent)


def try_writing(folder: Path) -> None:
    """Raises OSError unless a file can be made in `folder`, which permissions alone don't tell."""
    with tempfile.TemporaryFile(dir=folder):
        pass
