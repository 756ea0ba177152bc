"""One run in a folder: a second process is refused."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from vdm_jax import files
from vdm_jax.errors import UserError


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[None]:
    """Holds `workdir` within the block; the system lets it go however the process ends.

    Raises UserError, naming who holds it, if another process does. Warns where there are no locks.
    """
    holder = workdir / ".holder"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FileLock(workdir / ".lock", timeout=0))
        except Timeout:
            who = holder.read_text(encoding="utf-8").strip() if holder.exists() else "just starting"
            said = f"--workdir={workdir} is in use by another run ({who})"
            raise UserError(f"{said}: wait until it ends, stop it, or give another") from None
        except NotImplementedError as error:  # flock isn't there
            print(f"warning: {workdir} can't be locked ({error}): start no second run in it")
        files.write(holder, f"process {os.getpid()} on {platform.node()}\n")
        files.remove_partials(workdir)
        files.remove_partials(workdir / "samples")
        yield
