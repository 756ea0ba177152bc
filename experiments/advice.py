"""Whether a training step fits into memory, and which settings would make it fit."""

import contextlib
import traceback
from collections.abc import Callable, Container, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.cli import UserError
from vdm_jax.nn.blocks import REMATS
from vdm_jax.train import memory
from vdm_jax.train.memory import Room

__all__ = ["SETTINGS", "candidates", "compiled", "may_change", "sentence", "would_fit"]

ENOUGH = 2  # settings to name
LESS = 0.9  # of what a step that failed needed: nothing nearer is sure to fit
Changes = dict[str, Any]
"""Names below "config." -> values."""


MayChange = Callable[[str], bool]
"""Of a setting's name: whether another value may be given."""


class _ExhaustedError(Exception):
    """The runtime had no memory left; the message is what it said."""


def _micro_batches(config: ConfigDict, devices: int) -> list[int]:
    now, share = config.train.accumulate, config.train.batch_size // devices
    doubled = (now * 2**i for i in range(1, share.bit_length()))
    return [parts for parts in doubled if share % parts == 0]


def _shards(config: ConfigDict, devices: int) -> list[int]:
    more = range(config.train.shard_params + 1, devices + 1)
    return [parts for parts in more if devices % parts == 0]


def _remats(config: ConfigDict, devices: int) -> list[str]:
    return list(REMATS[REMATS.index(config.model.remat) + 1 :])


def _dtypes(config: ConfigDict, devices: int) -> list[str]:
    return ["bfloat16"] if config.model.dtype == "float32" else []


def _unet(config: ConfigDict) -> bool:
    return bool(config.model.network == "unet")


SETTINGS: tuple[tuple[str, Callable[[ConfigDict, int], list]], ...] = (
    ("model.remat", _remats),
    ("train.accumulate", _micro_batches),
    ("train.shard_params", _shards),
    ("model.dtype", _dtypes),
)
"""What lowers a step's memory, the least harmful first: a setting's name below "config.", and
(configuration, number of devices) -> the values that need less, from the mildest to the last."""


def candidates(config: ConfigDict, devices: int, may_change: MayChange) -> Iterator[Changes]:
    """Each setting alone, value by value; then the last values of the first two, of three, ..."""
    ladders = {
        name: values(config, devices)
        for name, values in _settings(config)
        if may_change(f"config.{name}")
    }
    for name, values in ladders.items():
        yield from ({name: value} for value in values)
    last = [(name, values[-1]) for name, values in ladders.items() if values]
    yield from (dict(last[:count]) for count in range(2, len(last) + 1))


def flags(changes: Changes) -> str:
    """As they are given at the command line."""
    return " ".join(f"--config.{name}={value}" for name, value in changes.items())


def sentence(config: ConfigDict, need: int, room: Room | None) -> str:
    """What a step of `config` needs, what there is, and the settings that it depends on."""
    of = "" if room is None else f" of {memory.words(room.free)}"
    names = ["train.batch_size", *(name for name, _ in _settings(config))]
    settings = [f"{name.split('.')[1]} {_get(config, name)}" for name in names]
    return f"needs about {memory.words(need)} per device{of}; {', '.join(settings)}"


def _print(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def compiled(
    config: ConfigDict,
    compile_step: Callable[[ConfigDict], jax.stages.Compiled],
    room: Room | None,
    devices: int,
    may_change: MayChange,
    say: Callable[[str], None] = _print,
) -> Iterator[jax.stages.Compiled]:
    """The compiled step of `config`, its need said; within the block it may run out of memory.

    Raises UserError, with settings that would fit, if it can't fit or the runtime says that it
    didn't. Where memory swaps, as a CPU's does, a step of more than is free may still run: then
    there is a warning.

    Args:
      compile_step: compiles the step of a configuration, without putting anything on a device.
      room: of a device, None if it isn't known.
      devices: their number.
      may_change: which settings may be named.
      say: told the need before the first step, and each attempt to lower it.
    """

    def advise(limit: float) -> str:
        return would_fit(config, lambda c: memory.need(compile_step(c)), int(limit), devices, say,
                         may_change)  # fmt: skip

    need = None
    try:
        with memory.exhausted(_ExhaustedError):
            step = compile_step(config)
            need = memory.need(step)
            if need is not None:
                said = sentence(config, need, room)
                if room is not None and need > room.most:
                    raise UserError(f"out of memory: a step {said}. {advise(room.most)}")
                say(said + _warning(config, need, room))
            yield step
    except _ExhaustedError as error:
        # To compile takes memory too: let go of the arrays in the frames that have ended.
        traceback.clear_frames((error.__cause__ or error).__traceback__)
        known = [size for size in (need, room and room.most) if size is not None]
        tried = advise(LESS * min(known)) if known else "Lower --config.train.batch_size."
        said = "" if need is None else f"; a step {sentence(config, need, room)}"
        raise UserError(f"out of memory ({error}){said}. {tried}") from error


def _settings(config: ConfigDict) -> list[tuple[str, Callable[[ConfigDict, int], list]]]:
    """Those that something reads."""
    return [of for of in SETTINGS if _unet(config) or not of[0].startswith("model.")]


def _warning(config: ConfigDict, need: int, room: Room | None) -> str:
    if room is None or need <= room.free:
        return ""
    names = " or ".join(f"--config.{name}" for name, _ in _settings(config))
    return f"\nwarning: that is more than is free: it may be slow, or killed; {names} lowers it"


def would_fit(
    config: ConfigDict,
    need_of: Callable[[ConfigDict], int | None],
    limit: int,
    devices: int,
    say: Callable[[str], None],
    may_change: MayChange,
) -> str:
    """The first few settings with which a step needs no more than `limit` bytes per device.

    Args:
      need_of: a configuration -> bytes per device, found by compiling; None if that can't be told.
      devices: their number.
      say: told of each attempt: compiling takes a while.
      may_change: which settings may be tried.
    """
    fits: list[str] = []
    found: list[tuple[int, str]] = []
    for changes in candidates(config, devices, may_change):
        given = flags(changes)
        need = _need(need_of, changed(config, changes))
        if need is None:
            continue
        say(f"{given} needs about {memory.words(need)} per device")
        found.append((need, given))
        if need <= limit:
            fits.append(f"{given} ({memory.words(need)})")
        if len(fits) == ENOUGH:
            break
    if fits:
        return f"Would fit: {', or '.join(fits)}."
    if not found:
        return "There is no setting to try but --config.train.batch_size, or a smaller model."
    least, given = min(found)
    return (
        f"No setting that was tried makes it fit into {memory.words(limit)}; the least is "
        f"{memory.words(least)}, with {given}. Lower --config.train.batch_size, or take a smaller "
        "model."
    )


def changed(config: ConfigDict, changes: Changes) -> ConfigDict:
    """A copy with the changes."""
    copy = ConfigDict(config.to_dict())
    copy.update_from_flattened_dict(changes)
    return copy


def may_change(started: bool, may_differ: Container[str]) -> MayChange:
    """Any setting, or once a run has begun those in `may_differ`."""
    return lambda name: not started or name in may_differ


def _need(need_of: Callable[[ConfigDict], int | None], config: ConfigDict) -> int | None:
    try:
        with memory.exhausted(_ExhaustedError):
            return need_of(config)
    except (_ExhaustedError, UserError):  # it can't even be compiled; the model doesn't have it
        return None


def _get(config: ConfigDict, name: str) -> Any:
    part, field = name.split(".")
    return config[part][field]
