"""Checkpoints of a run: its state, and beside it what it was trained with."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from vdm_jax import files, signals
from vdm_jax.train import quiet, record, restoring, settings
from vdm_jax.train.record import CheckpointError, DamagedError
from vdm_jax.train.restoring import complete_steps, load_params

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DamagedError",
    "SettingsError",
    "complete_steps",
    "load_params",
]

T = TypeVar("T")


class SettingsError(CheckpointError):
    """A checkpoint of a run with other settings; `differences` has a line for each."""

    def __init__(self, message: str, differences: list[str]) -> None:
        super().__init__(message)
        self.differences = differences


class Checkpoints:
    """The checkpoints in a folder, the newest few kept, written in the background by Orbax.

    `meta` is a JSON object saved beside each state (the configuration and the data set's
    fingerprint). A state is only restored to a run with the same meta, but for the dotted names
    in `may_differ`, or with `allow_change`. `defaults` says what is meant where an older
    checkpoint's meta lacks a name. With `clean`, what a killed run left half written is removed:
    it is for who owns the folder, or another's save would be.
    """

    def __init__(
        self,
        folder: Path,
        meta: Mapping[str, Any],
        keep: int = 3,
        may_differ: tuple[str, ...] = (),
        defaults: Mapping[str, Any] | None = None,
        allow_change: bool = False,
        clean: bool = False,
    ) -> None:
        self._folder = folder.absolute()
        self._meta = json.loads(json.dumps(dict(meta)))
        self._may_differ = may_differ
        self._defaults = json.loads(json.dumps(dict(defaults or {})))
        self._allow_change = allow_change
        quiet.quieten()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=clean
        )
        with self._written():
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_names=("state", "meta")
            )

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None; it may still be on its way to the disk."""
        return self._manager.latest_step()

    # ---- writing ----

    def save(self, step: int, state: Any) -> None:
        """Start saving; `state` may be donated as soon as this returns.

        Raises CheckpointError if the step is already there or not above the newest, or if an
        earlier one could not be written.
        """
        newest = self.latest_step()
        if newest is not None and newest >= step:  # Orbax would skip it without a word
            raise CheckpointError(
                f"the checkpoint of step {step} was not written to {self._folder}: "
                f"it holds step {newest} already."
            )
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave(record.make(self._meta, state)),
        )
        with signals.deferred(), self._written():
            self._manager.save(step, args=items, force=True)

    def check_written(self) -> None:
        """Raise CheckpointError if the last save has failed. It doesn't wait for one."""
        if not self._manager.is_saving_in_progress():
            with self._written():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is written. Raises CheckpointError if that failed."""
        try:
            with signals.deferred(), self._written():
                self._manager.wait_until_finished()
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """Raise CheckpointError, with what is kept, where no file of the run can be written."""
        try:
            yield
        except Exception as error:  # of a few kinds
            reason = files.full(error, self._folder.parent)
            if reason is None:
                raise
            raise CheckpointError(
                f"{reason}. {self._newest_complete()}; make space there (or raise the limit), then "
                "give the same command again."
            ) from error

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            with self.full_disk():
                yield
        except CheckpointError:
            raise
        except Exception as error:  # of many kinds, often of an earlier save
            raise CheckpointError(
                f"no checkpoint can be written to {self._folder} "
                f"({restoring.first_line(error)}). {self._newest_complete()}."
            ) from error

    def _newest_complete(self) -> str:
        steps = complete_steps(self._folder)
        return f"The newest complete checkpoint is {f'of step {steps[-1]}' if steps else 'none'}"

    # ---- reading ----

    def check(self, template: Any, step: int | None = None, allow_fallback: bool = False) -> int:
        """The step, by default the newest; raises as `restore`. Reads no state."""
        return self._newest(lambda at: self._record(at, template), step, allow_fallback)[0]

    def restore(
        self,
        template: T,
        step: int | None = None,
        allow_fallback: bool = False,
        say: Callable[[str], None] = print,
    ) -> T:
        """The state of the given step, by default the newest, with template's shardings.

        `template` holds arrays, or shapes with shardings. Raises DamagedError unless the state has
        the very bits that were saved, SettingsError if it is of other settings, CheckpointError
        if there is none or if it is of another model. `say` is told, a line each, how the
        settings differ where that is allowed.

        With `allow_fallback`, in a run of one process, it is the newest that isn't damaged. Each
        newer one is named to `say` and moved into the folder `damaged` beside this one.
        """
        step, (saved, state), damaged = self._newest(
            lambda at: self._state(at, template), step, allow_fallback
        )
        for each, why in damaged.items():
            say(f"{why} Moved to {self._move_aside(each)}; going on from step {step}.")
        for line in self._differences(saved):
            say(f"  {line}")
        return state

    def _newest(
        self, read: Callable[[int], T], step: int | None, allow_fallback: bool
    ) -> tuple[int, T, dict[int, DamagedError]]:
        """The step that can be read, the newest first; what is read; what was damaged."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps or step not in (None, *steps):
            raise CheckpointError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self._folder}."
            )
        damaged: dict[int, DamagedError] = {}
        for at in steps if step is None else [step]:
            try:
                return at, read(at), damaged
            except DamagedError as error:
                # Of several processes perhaps only one has seen it, and the others restore.
                if not allow_fallback or jax.process_count() > 1:
                    raise
                damaged[at] = error
        raise CheckpointError(
            f"none of the checkpoints in {self._folder} is whole, and none was moved: "
            f"{' '.join(map(str, damaged.values()))}"
        )

    def _record(self, step: int, template: Any) -> dict[str, Any]:
        where, item = self._folder / str(step), ocp.args.Composite(meta=restoring.JSON)

        def read() -> dict[str, Any]:
            return record.check_intact(self._manager.restore(step, args=item)["meta"])

        saved = restoring.intact(where, self._manager.all_steps(), read)
        found = self._differences(saved)
        if found and not self._allow_change:
            raise SettingsError(
                f"the run in {self._folder.parent} was started with other settings.", found
            )
        record.check_fits(saved, template, where)
        return saved

    def _state(self, step: int, template: T) -> tuple[dict[str, Any], T]:
        """The record and the state."""
        saved = self._record(step, template)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        item = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))

        def read() -> T:
            restored = self._manager.restore(step, args=item)["state"]
            record.check_same(saved, restored)
            return restored

        where = self._folder / str(step)
        return saved, restoring.intact(where, self._manager.all_steps(), read)

    def _differences(self, saved: Mapping[str, Any]) -> list[str]:
        then = settings.filled(self._defaults, saved["settings"])
        found = settings.differences(then, self._meta)
        return [line for name, line in found if name not in self._may_differ]

    def _move_aside(self, step: int) -> Path:
        """Move a checkpoint, whole, to where it is in nobody's way."""
        aside = self._folder.parent / "damaged"
        names = [str(step), *(f"{step}-{n}" for n in range(2, 10_000))]
        target = next(aside / name for name in names if not (aside / name).exists())
        aside.mkdir(exist_ok=True)
        shutil.move(self._folder / str(step), target)
        self._manager.reload()
        return target
