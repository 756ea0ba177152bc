"""Reading a checkpoint: what counts as damage, and parameters without the run they are of."""

import errno
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from vdm_jax import files
from vdm_jax.train import quiet, record, sharding
from vdm_jax.train.record import CheckpointError, DamagedError

__all__ = ["complete_steps", "first_line", "intact", "load_params"]

T = TypeVar("T")

JSON = ocp.args.JsonRestore()

# What Orbax says when another process of the run is gone or late.
_ANOTHER_PROCESS = re.compile(r"barrier|coordination|deadline|heartbeat|unavailable", re.IGNORECASE)

_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)


def complete_steps(folder: Path) -> list[int]:
    """The steps of which a complete checkpoint is on the disk, oldest first."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def load_params(
    folder: Path, expected: Any, mesh: Mesh, step: int | None = None
) -> tuple[int, Any]:
    """The EMA parameters of a checkpoint in `folder`, and its step (by default the newest).

    They lie on the mesh as `vdm_jax.train.sharding.of_parameters` has it.

    `expected` is a tree of arrays or shapes, that of the model they are for. Raises
    DamagedError unless they have the very bits that were saved, and CheckpointError if there is
    no such checkpoint, or if its parameters are those of another model: then it names the first
    leaf that differs, with both shapes.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder} with checkpoints.")
    steps = complete_steps(folder)
    if not steps or step not in (None, *steps):
        known = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(
            f"no checkpoint{'' if step is None else f' of step {step}'} in {folder}; "
            f"there: {known}."
        )
    step = steps[-1] if step is None else step
    where = folder / str(step)
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    template = {"ema_params": sharding.placed(mesh, expected)}
    arrays = ocp.args.PyTreeRestore(
        template,
        restore_args=ocp.checkpoint_utils.construct_restore_args(template),
        partial_restore=True,
    )
    quiet.quieten()
    with ocp.CheckpointManager(folder, item_handlers=handlers) as manager:

        def read(**items: Any) -> Any:
            return manager.restore(step, args=ocp.args.Composite(**items))

        def read_params() -> Any:
            restored = read(state=arrays)["state"]
            record.check_same(saved, restored)
            return restored["ema_params"]

        saved = intact(where, steps, lambda: record.check_intact(read(meta=JSON)["meta"]))
        record.check_fits(saved, expected, where, below="ema_params/")
        return step, intact(where, steps, read_params)


def intact(where: Path, steps: Sequence[int], read: Callable[[], T]) -> T:
    """`read()`, the checkpoint `where` or a part of it; what it raises says it is damaged.

    DamagedError, in one line, names also the other `steps`. A lack of memory, of open files, of
    permission or of another process is no damage, and a CheckpointError.
    """
    try:
        return read()
    except Exception as error:  # Orbax raises many kinds for a damaged folder
        reason = first_line(error)
        if _no_damage(error):
            raise CheckpointError(f"the checkpoint {where} can't be read ({reason}).") from error
        others = ", ".join(str(step) for step in sorted(steps) if str(step) != where.name)
        raise DamagedError(
            f"the checkpoint {where} is damaged ({reason}); others there: {others or 'none'}."
        ) from error


def _no_damage(error: Exception) -> bool:
    """Whether it says nothing of the files."""
    lost = jax.process_count() > 1 and _ANOTHER_PROCESS.search(str(error))
    return (
        isinstance(error, MemoryError | jax.errors.JaxRuntimeError)
        or files.number(error) in _NOT_DAMAGE
        or bool(lost)
    )


def first_line(error: Exception) -> str:
    """The beginning of what an error says, or its name."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
