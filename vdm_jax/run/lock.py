"""One run in a folder: a second process is refused."""

import contextlib
import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from vdm_jax.run.cli import UserError

__all__ = ["NAME", "owned"]

NAME = ".lock"


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[None]:
    """Hold `workdir` within the block; the system lets it go however the process ends.

    Raises UserError, naming who holds it, if another process does. A file system that has no locks
    gets a warning.
    """
    file = workdir / NAME
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"--workdir={workdir} is in use by another run "
                    f"({file.read_text().strip() or 'just starting'}): wait until it ends, stop "
                    "it, or give another workdir"
                ) from None
            print(f"warning: {workdir} can't be locked ({error}): start no second run in it")
        os.truncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
