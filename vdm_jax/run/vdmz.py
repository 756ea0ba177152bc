"""The model as the codec takes it, and the progress bar and output of both commands."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from vdm_jax import files, mixed
from vdm_jax.compression import network
from vdm_jax.compression.file import CHAIN, Header, VdmzError
from vdm_jax.errors import UserError, user_path
from vdm_jax.run import build, restore
from vdm_jax.train import memory, sharding
from vdm_jax.train.model import Params
from vdm_jax.train.progress import Bar
from vdm_jax.vdm import VDM

# The part of a run's `config.model` that says which function the parameters stand for.
_FUNCTION = (
    "network", "head", "channels", "num_blocks", "attention", "fourier_features", "gamma",
    "gamma_min", "gamma_max", "gamma_pinned", "learn_end_points",
)  # fmt: skip


class Source(NamedTuple):
    """A trained model as the codec takes it."""

    bind: Callable[[Params], VDM]
    params: Params
    settings: Mapping[str, Any]


def load(
    options: Mapping[str, Any], shape: tuple[int, ...], columns: int = 0
) -> tuple[Source, str]:
    """Returns the model that the flags name for images of `shape`, and its name in reports.

    Raises UserError for a model that can't compress, or whose conditioning has other `columns`.
    """
    mesh = sharding.make_mesh(build.make_mesh().devices.reshape(-1).tolist()[:1])
    with jax.enable_x64(False):  # as it was trained, whatever JAX_ENABLE_X64 says
        of = restore.load(options, mesh, shape)
    facts = of.model.facts()
    if not isinstance(facts, VDM) or None in mixed.kinds(facts.levels):
        raise UserError(f"{of.name} is no VDM of pixel levels ({facts.words}): it can't compress")
    wanted = (1 + (of.condition.numbers or 1)) if of.condition.size else 0  # the flag is the first
    if columns != wanted:
        said = f"is told {wanted} numbers of each image, but these come with {columns}"
        raise UserError(f"{of.name} {said}; a run's own images have what its model takes: --split")
    names = of.settings if options["official"] else _FUNCTION
    if of.settings.get("network") == "pyramid":
        names = (*names, "multipliers", "blocks", "contrasts")
    settings = {name: of.settings[name] for name in names}
    source = Source(of.model.bind, jax.device_get(of.params), settings)
    return source, f"{of.name}, step {of.step}"


def check_room(source: Source, header: Header) -> None:
    """Raises VdmzError if the network alone would need more memory for a file than there is.

    A published model, and one in a file, takes images of any size, so that few bytes may ask for
    much: its attention has a number, of 8 bytes, for each pair of pixels.
    """
    settings = source.settings
    halved = len(settings["multipliers"].split(",")) - 1 if "multipliers" in settings else 0
    any_size = settings.get("network") in ("unet", "pyramid") or "sm_n_embd" in settings
    if not any_size or all(b.mode != CHAIN for b in header.blocks):
        return
    shape = (network.at_once(len(header.blocks)), *header.event_shape)
    need = 8 * shape[0] * (math.prod(shape[1:3]) // 4**halved) ** 2
    room = memory.room(jax.devices()[0])
    if room and need > room.free:
        said = f"its {shape[0]} x {'x'.join(map(str, shape[1:]))} pixels at once take"
        free = f"{memory.words(room.free)} are free"
        raise VdmzError(f"{said} {memory.words(need)} or more in the network; {free}")


@contextlib.contextmanager
def progress(words: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Yields what shows a bar of images; it goes back where the codec begins anew."""
    with Bar(words, total) as bar:
        yield lambda done, of: bar.move(total - of + done)  # the others are seeds


def free(given: str | None, flag: str) -> Path:
    """Returns a path to write to. Raises UserError if something is there already."""
    if not given:
        raise UserError(f"{flag} is missing: what to write")
    out = user_path(given, flag.split()[0])
    files.check_free(out)
    return out
