"""The one place that writes files, whole or not at all; and how a full disk shows."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vdm_jax.errors import UserError, reaching, reason
from vdm_jax.signals import ENDING, deferred, handlers

_PARTIAL = ".partial-"
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


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError that names no file, or a half-written one, the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or _PARTIAL in str(error.filename):
            error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Yields a new file that becomes `path` when the block ends: whole and on the disk, or never.

    What is there is replaced; of a symbolic link the link itself, never what it points to.
    """
    partial = _beside(path)
    with naming(path):
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            _remove(partial)
        sync(path.parent)


def write(path: Path, content: bytes | str) -> None:
    """Writes a file by `whole`; text as UTF-8."""
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Writes a file by `whole`, as JSON that a person can read."""
    write(path, json.dumps(value, indent=1) + "\n")


def append(path: Path, line: str) -> None:
    """Adds a line to the end of a file that is no link, and brings it onto the disk."""
    how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    with naming(path), os.fdopen(os.open(path, how, 0o666), "ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def remove_partials(folder: Path) -> None:
    """Removes what killed processes left half written in a folder that nobody else writes to."""
    for left in folder.glob(f"{_PARTIAL}*"):
        _remove(left)


def _beside(path: Path) -> Path:
    return path.with_name(f"{_PARTIAL}{os.getpid()}-{secrets.token_hex(4)}")


def _remove(path: Path) -> None:
    with deferred():
        shutil.rmtree(path, ignore_errors=True)  # a folder; and a file
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def writing(out: Path) -> Iterator[Path]:
    """Yields a path beside `out` to write a file or folder to; it becomes `out` at the end.

    A block that fails, or that Ctrl-C or one of `signals.ENDING` ends, leaves nothing. Raises
    UserError where `out` is there already, or by then, or can't be written.
    """
    check_free(out)
    partial = _beside(out)
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
            _remove(partial)
    sync(out.parent)


def sync(folder: Path) -> None:
    """Brings the names that are in a folder onto the disk, where its file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:  # the last: a folder that may be written to, but not listed
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def _end(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough, and the rest is removed
    print(f"error: terminated ({signal.Signals(number).name})", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def check_free(out: Path) -> None:
    """Raises UserError unless `out` can be made: it isn't there, but a folder to write it to is."""
    with reaching(out):
        if os.path.lexists(out):
            raise UserError(f"{out} is there already; name another, or move it away")
        if not out.parent.is_dir():
            raise UserError(f"{out.parent} is no folder; make it first, or write somewhere else")
    with reaching(out.parent, "written to"):
        try_writing(out.parent)


def try_writing(folder: Path) -> None:
    """Raises OSError unless a file can be made in `folder`, which permissions alone don't tell."""
    with tempfile.TemporaryFile(dir=folder):
        pass
