"""Checkpoints of a run: its state, and beside it what it was trained with."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import chex
import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from vdm_jax.train import interrupts, sharding

__all__ = ["CheckpointError", "Checkpoints", "differences", "filled", "load_params"]

T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another run; the message is one line."""


class Checkpoints:
    """The checkpoints in a folder, the newest few kept, written in the background by Orbax.

    `meta` is a JSON object saved beside each state (the configuration and the data set's
    fingerprint). A state is only restored to a run with the same meta, but for the dotted names
    in `may_differ`. `defaults` says what is meant where an older checkpoint's meta lacks a name.
    """

    def __init__(
        self,
        folder: Path,
        meta: Mapping[str, Any],
        keep: int = 3,
        may_differ: tuple[str, ...] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = folder.absolute()
        self._meta = json.loads(json.dumps(dict(meta)))
        self._may_differ = may_differ
        self._defaults = json.loads(json.dumps(dict(defaults or {})))
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(
            self._folder, options=options, item_names=("state", "meta")
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Start saving; `state` may be donated as soon as this returns.

        Raises CheckpointError if the step is already there or not above the newest.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(self._meta)
        )
        newest = self.latest_step()
        if newest is not None and newest >= step:  # Orbax would skip it without a word
            raise CheckpointError(
                f"the checkpoint of step {step} was not written to {self._folder}: "
                f"it holds step {newest} already."
            )
        with interrupts.deferred():
            self._manager.save(step, args=items, force=True)

    def restore(self, template: T, step: int | None = None) -> T:
        """The state of the given step, by default the newest, with template's shardings.

        `template` holds arrays, or shapes with shardings. Raises CheckpointError if there is no
        such state, if it can't be read, or if it belongs to another configuration, data set or
        model.
        """
        step = self.check(step)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )["state"]
            chex.assert_trees_all_equal_shapes_and_dtypes(restored, template)
        except Exception as error:  # Orbax raises many kinds for a damaged folder
            raise CheckpointError(
                f"the checkpoint {self._folder / str(step)} can't be restored "
                f"({_first_line(error)}); delete that folder to go on from the one before it."
            ) from error
        return restored

    def close(self) -> None:
        """Wait until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def check(self, step: int | None = None) -> int:
        """The step, by default the newest; raises CheckpointError as `restore`. Reads no state."""
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise CheckpointError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self._folder}."
            )
        self._check_meta(step)
        return step

    def _check_meta(self, step: int) -> None:
        try:
            item = ocp.args.Composite(meta=ocp.args.JsonRestore())
            saved = self._manager.restore(step, args=item)["meta"]
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint {self._folder / str(step)} has no readable meta data "
                f"({_first_line(error)}); delete that folder to go on from the one before it."
            ) from error
        saved = filled(self._defaults, saved)
        found = [
            line for name, line in differences(saved, self._meta) if name not in self._may_differ
        ]
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise CheckpointError(
                f"the run in {self._folder.parent} was started with other settings: "
                f"{'; '.join(found[:3])}{more}. Give the old values again, or another workdir."
            )


def load_params(
    folder: Path, expected: Any, mesh: Mesh, step: int | None = None
) -> tuple[int, Any]:
    """The EMA parameters of a checkpoint in `folder`, and its step (by default the newest).

    They lie on the mesh as `vdm_jax.train.sharding.of_parameters` has it.

    `expected` is a tree of arrays or shapes, that of the model they are for. Raises
    CheckpointError if there is no such checkpoint, if it can't be read, or if its parameters are
    those of another model: then it names the first leaf that differs, with both shapes.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder} with checkpoints.")
    steps = sorted(ocp.utils.checkpoint_steps(folder))
    if not steps or step not in (None, *steps):
        known = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(
            f"no checkpoint{'' if step is None else f' of step {step}'} in {folder}; "
            f"there: {known}."
        )
    step = steps[-1] if step is None else step
    handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    try:
        with ocp.CheckpointManager(folder, item_handlers=handlers) as manager:
            found = manager.item_metadata(step)["state"].tree
            _check_shapes(found["ema_params"], expected, folder / str(step))
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found)
            template = sharding.placed(mesh, shapes)
            item = ocp.args.Composite(state=ocp.args.StandardRestore(template))
            return step, manager.restore(step, args=item)["state"]["ema_params"]
    except CheckpointError:
        raise
    except Exception as error:  # Orbax raises many kinds for a damaged folder
        raise CheckpointError(
            f"the checkpoint {folder / str(step)} can't be read ({_first_line(error)}); others "
            f"there: {', '.join(str(other) for other in steps if other != step) or 'none'}."
        ) from error


def _check_shapes(found: Any, expected: Any, where: Path) -> None:
    have, want = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in leaves
        }
        for leaves in (jax.tree_util.tree_leaves_with_path(tree) for tree in (found, expected))
    )
    for name in sorted(have.keys() | want.keys()):
        a, b = have.get(name), want.get(name)
        if a is None or b is None or tuple(a) != tuple(b):
            said = ["absent" if shape is None else str(list(shape)) for shape in (a, b)]
            raise CheckpointError(
                f"the parameter {name} of {where} is {said[0]}, but the configuration calls for "
                f"{said[1]}: they belong to different models."
            )


def differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """(dotted name, "name was a, now is b") for each leaf in which two nested dicts differ."""
    for key in sorted(saved.keys() | now.keys()):
        name = f"{prefix}{key}"
        a, b = saved.get(key, "unset"), now.get(key, "unset")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{name}.")
        elif a != b:
            yield name, f"{name} was {a}, now is {b}"


def filled(defaults: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """`saved`, and from `defaults` what it lacks, at any depth."""
    both = dict(defaults) | dict(saved)
    for name, value in defaults.items():
        if isinstance(value, Mapping):
            both[name] = filled(value, saved.get(name, {}))
    return both


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
