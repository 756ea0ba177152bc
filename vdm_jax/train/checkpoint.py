"""Checkpoints of a run: its state, and beside it what it was trained with."""

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import orbax.checkpoint as ocp

from vdm_jax import files, signals
from vdm_jax.errors import reason
from vdm_jax.train import record
from vdm_jax.train.load_checkpoint import Folder, complete_steps, quieten, read_item, read_record
from vdm_jax.train.record import CheckpointError, DamagedError

T = TypeVar("T")


class SettingsError(CheckpointError):
    """A checkpoint of a run with other settings; the message names each difference."""


class Checkpoints:
    """The checkpoints of a run, the newest few kept, written in the background by Orbax.

    At the end of the context all is written, unless a second Ctrl-C ends it.
    """

    def __init__(
        self,
        folder: Path,
        meta: Mapping[str, Any],
        keep: int = 3,
        may_differ: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
        allow_change: bool = False,
        allow_fallback: bool = False,
    ) -> None:
        """Opens the folder, and removes what a killed run left half written in it.

        `meta` is a JSON object saved beside each state. A state is only restored to a run with the
        same, but for the dotted names in `may_differ`, or with `allow_change`, which prints them.
        `defaults` says what is meant where an older checkpoint's meta lacks a name. With
        `allow_fallback` a run of one process goes on from the newest checkpoint that isn't damaged,
        and newer ones are moved into the folder `damaged` beside this one.
        """
        self._folder, self._may_differ, self._keep = folder.absolute(), may_differ, keep
        self._meta, self._defaults = json.loads(json.dumps([dict(meta), dict(defaults or {})]))
        self._allow_change = allow_change
        self._allow_fallback = allow_fallback and jax.process_count() == 1
        quieten()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        items = ("state", "meta")
        if "\\" in str(self._folder):  # by TensorStore: the numbers would lie elsewhere
            said = "can't hold checkpoints: a backslash in a path is taken for a /; name another"
            raise CheckpointError(f"{self._folder} {said} folder")
        with self._writing():
            where = Folder(self._folder)
            self._manager = ocp.CheckpointManager(where, options=options, item_names=items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not KeyboardInterrupt:
            self.close()

    def latest_step(self) -> int | None:
        """Returns the newest checkpoint's step, or None; it may not be on the disk yet."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Starts saving; `state` may be donated as soon as this returns.

        Raises CheckpointError for a step not above the newest, and for an earlier failed save.
        """
        newest = self.latest_step()
        if newest is not None and newest >= step:  # Orbax would skip it without a word
            what = f"the checkpoint of step {step} was not written to {self._folder}"
            raise CheckpointError(f"{what}: it holds step {newest} already.")
        meta = ocp.args.JsonSave(record.make(self._meta, state))
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=meta)
        with self._writing():
            self._manager.save(step, args=items, force=True)

    def check_written(self) -> None:
        """Raises CheckpointError if the last save has failed; waits for none."""
        if not self._manager.is_saving_in_progress():
            with self._writing():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until all is written. Raises CheckpointError if that failed."""
        try:
            with self._writing():
                self._manager.wait_until_finished()
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """Raises CheckpointError, with what is kept, where no file of the run can be written."""
        try:
            yield
        except Exception as error:  # of a few kinds
            full = files.full(error, self._folder.parent)
            if full is None:
                raise
            hint = "make space there (or raise the limit), then give the same command again."
            raise CheckpointError(f"{full}. {self._newest_complete()}; {hint}") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with signals.deferred(), self.full_disk():
                yield
        except CheckpointError:
            raise
        except Exception as error:  # of many kinds, often of an earlier save
            said = f"no checkpoint can be written to {self._folder} ({reason(error)})"
            raise CheckpointError(f"{said}. {self._newest_complete()}.") from error

    def _newest_complete(self) -> str:
        steps = complete_steps(self._folder)
        return f"The newest complete checkpoint is {f'of step {steps[-1]}' if steps else 'none'}"

    def check(self, template: Any) -> int:
        """Returns the step that `restore` would take; raises what it would by the records alone."""
        return self._newest(lambda step: self._record(step, template))[0]

    def restore(self, template: T) -> T:
        """Returns the newest state with the shardings of `template`, a tree of arrays or shapes.

        Raises DamagedError unless it has the bits that were saved, SettingsError for other
        settings, CheckpointError if there is none or for another model.
        """
        step, (saved, state), damaged = self._newest(lambda step: self._state(step, template))
        for each, error in damaged.items():
            print(f"{error} Moved to {self._move_aside(each)}; going on from step {step}.")
        for line in self._differences(saved):
            print(f"  {line}")
        with self._writing():
            for old in sorted(self._manager.all_steps())[: -self._keep]:
                self._manager.delete(old)  # a killed run may have removed half of it
        return state

    def _newest(self, read: Callable[[int], T]) -> tuple[int, T, dict[int, DamagedError]]:
        """Returns the newest step that can be read, what was read, and which were damaged."""
        with self._writing():
            self._manager.wait_until_finished()
        damaged: dict[int, DamagedError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return step, read(step), damaged
            except DamagedError as error:
                if not self._allow_fallback:
                    raise DamagedError(
                        f"{error} Move that folder away to go on from the one before it."
                    ) from error
                damaged[step] = error
        if not damaged:
            raise CheckpointError(f"no checkpoint in {self._folder}.")
        said = f"none of the checkpoints in {self._folder} is whole, and none was moved"
        raise CheckpointError(f"{said}: {' '.join(map(str, damaged.values()))}")

    def _record(self, step: int, template: Any) -> dict[str, Any]:
        """Returns the record of a step, if its settings and its model are this run's."""
        saved = read_record(self._folder / str(step))
        found = self._differences(saved)
        if found and not self._allow_change:
            raise SettingsError(
                f"the run in {self._folder.parent} was started with other settings "
                f"({'; '.join(found)}). Give the old values again, or another workdir."
            )
        record.check_fits(saved, template, self._folder / str(step))
        return saved

    def _state(self, step: int, template: T) -> tuple[dict[str, Any], T]:
        saved = self._record(step, template)
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        args, handler = ocp.args.StandardRestore(wanted), ocp.StandardCheckpointHandler()
        same = functools.partial(record.check_same, saved, wanted)
        return saved, read_item(self._folder / str(step) / "state", handler, args, same)

    def _differences(self, saved: Mapping[str, Any]) -> list[str]:
        then = record.filled(self._defaults, saved["settings"])
        found = record.differences(then, self._meta)
        return [line for name, line in found if name not in self._may_differ]

    def _move_aside(self, step: int) -> Path:
        """Moves a checkpoint into the folder `damaged`; returns where it is now."""
        aside = self._folder.parent / "damaged"
        names = [str(step), *(f"{step}-{n}" for n in range(2, 10_000))]
        target = next(aside / name for name in names if not (aside / name).exists())
        aside.mkdir(exist_ok=True)
        shutil.move(self._folder / str(step), target)
        self._manager.reload()
        return target
