"""Reads checkpoints, also of a run that goes on: all or one item, each with its checksums."""

import contextlib
import errno
import functools
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from vdm_jax import files
from vdm_jax.errors import reaching, reason
from vdm_jax.train import record, sharding
from vdm_jax.train.record import CheckpointError, DamagedError

# What Orbax says when another process of the run is gone or late.
_ANOTHER_PROCESS = re.compile(r"barrier|coordination|deadline|heartbeat|unavailable", re.IGNORECASE)
_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
TRIES = 10  # of reading what a run that goes on may remove meanwhile
REMOVAL_S = 3.0  # that removing a checkpoint may take


class Folder(type(epath.Path())):  # type: ignore[misc]
    """A folder for Orbax, in whose own name [ ] * ? are letters.

    Orbax looks for what it has written by a glob on the whole path: below `run[lr=2e-3]` it finds
    nothing, and leaves a checkpoint that can't be read.
    """

    def glob(self, pattern: str) -> Iterator[Self]:
        """Yields what lies in the folder and matches the pattern."""
        return (self._new(found) for found in Path(self).glob(pattern))


def complete_steps(folder: Path) -> list[int]:
    """Returns the steps of which a complete checkpoint is on the disk, oldest first.

    Raises UserError for a folder that can't be read.
    """
    with reaching(folder):
        for _ in range(TRIES - 1):
            if not folder.is_dir():
                return []
            with contextlib.suppress(FileNotFoundError, ValueError):  # removed after it was listed
                if found := _steps(folder):  # a list may miss what is renamed
                    return found
        return _steps(folder)


def _steps(folder: Path) -> list[int]:
    found = ocp.utils.checkpoint_steps_paths(folder)  # also what was set aside, as old_100
    return sorted(int(path.name) for path in found if path.name.isdecimal())


class RemovedError(CheckpointError):
    """A checkpoint that a run has removed, maybe while it was read, as it keeps the newest few."""


def load_settings(folder: Path, step: int | None) -> tuple[int, dict[str, Any]]:
    """Returns a checkpoint's step, by default the newest, and the settings sealed in it.

    Raises as `load_params` does.
    """
    with _chosen(folder, step) as where:
        return int(where.name), dict(read_record(where).get("settings", {}))


def load_params(
    folder: Path, expected: Any, mesh: Mesh, step: int | None = None
) -> tuple[int, Any]:
    """Returns a checkpoint's step, by default the newest, and its EMA parameters, over the mesh.

    `expected` is their model's tree of arrays or shapes. Raises DamagedError unless they have the
    bits that were saved, RemovedError if a run removes them meanwhile, and CheckpointError for no
    such checkpoint or another model's.
    """
    wanted = {"ema_params": sharding.placed(mesh, expected)}
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    arrays = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
    with _chosen(folder, step) as where:
        saved = read_record(where)
        record.check_fits(saved, expected, where, below="ema_params/")
        same = functools.partial(record.check_same, saved, wanted)
        state = read_item(where / "state", ocp.PyTreeCheckpointHandler(), arrays, same)
        return int(where.name), state["ema_params"]


@contextlib.contextmanager
def _chosen(folder: Path, step: int | None) -> Iterator[Path]:
    """Yields the folder of a checkpoint, which a run that goes on may remove meanwhile."""
    folder = folder.absolute()
    steps = complete_steps(folder)
    if not steps or step not in (None, *steps):
        known = ", ".join(map(str, steps)) or "none"
        which = "" if step is None else f" of step {step}"
        gone = step is not None and step < min(steps, default=0)  # the oldest are removed
        kind = RemovedError if gone else CheckpointError
        raise kind(f"no checkpoint{which} in {folder}; there: {known}.")
    where = folder / str(steps[-1] if step is None else step)
    quieten()
    try:
        yield where
    except Exception as error:  # of many kinds, where files go meanwhile
        if not _removed(where):
            raise
        said = f"the checkpoint {where} was removed while it was read, by a run that goes on and"
        hint = "give the command again, or name a newer checkpoint."
        raise RemovedError(f"{said} keeps the newest few: {hint}") from error


def _removed(where: Path) -> bool:
    """Returns whether a run removes the checkpoint; waits for the end of what looks like it."""
    until = time.monotonic() + REMOVAL_S
    while where.exists():  # a run removes one file after the other
        newest = max(complete_steps(where.parent), default=0)
        if time.monotonic() > until or newest <= int(where.name):
            return False
        time.sleep(0.05)
    return True


def read_record(where: Path) -> Any:
    """Returns the record of a checkpoint, which is whole. Raises as `read_item` does."""
    handler, args = ocp.JsonCheckpointHandler(), ocp.args.JsonRestore()
    return read_item(where / "meta", handler, args, record.check_intact)


def read_item(item: Path, handler: Any, args: Any, check: Callable[[Any], object]) -> Any:
    """Returns an item of a checkpoint, a folder in its own, that `check` accepts.

    Raises DamagedError for whatever is raised on the way; but CheckpointError for a lack of memory,
    open files, permission or another process, which is no damage.
    """
    where = item.parent
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            restored = checkpointer.restore(Folder(item), args)
        check(restored)
        return restored
    except Exception as error:  # Orbax raises many kinds for a damaged folder
        said = reason(error).partition(" See full TensorStore")[0]  # no detail comes, but a method
        others = sorted({*complete_steps(where.parent)} - {int(where.name)})
        known = ", ".join(map(str, others)) or "none"
        lost = jax.process_count() > 1 and _ANOTHER_PROCESS.search(str(error))
        lack = isinstance(error, MemoryError | jax.errors.JaxRuntimeError)
        if lost or lack or files.number(error) in _NOT_DAMAGE:
            raise CheckpointError(f"the checkpoint {where} can't be read ({said}).") from error
        said = f"the checkpoint {where} is damaged ({said}); others there: {known}."
        raise DamagedError(said) from error


def quieten() -> None:
    """Keeps what Orbax and TensorStore raise from being printed as well, at any later time."""
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
