"""The parts that compress and decompress share: the model as the codec takes it, and how they talk."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags

from vdm_jax import files
from vdm_jax.compression.blocks import Progress
from vdm_jax.compression.file import MOST_DIMS
from vdm_jax.errors import UserError, user_path
from vdm_jax.run import build, cli, restore
from vdm_jax.run import config as check
from vdm_jax.run.bar import Bar
from vdm_jax.run.models import make_model
from vdm_jax.train import sharding
from vdm_jax.train.model import Params
from vdm_jax.vdm import VDM

__all__ = ["Source", "define_flags", "free", "load", "progress"]

# Of the configuration: what of `config.model` says which function the parameters stand for.
_FUNCTION = (
    "network", "head", "channels", "num_blocks", "attention", "fourier_features", "gamma",
    "gamma_min", "gamma_max", "gamma_pinned", "learn_end_points",
)  # fmt: skip


class Source(NamedTuple):
    """A trained model as the codec takes it."""

    bind: Any
    """Function parameters -> VDM."""
    params: Params
    """Parameters on one device."""
    settings: Mapping[str, Any]
    """Settings that say which function the parameters stand for."""
    name: str
    """Name in reports."""

    @property
    def vdm(self) -> VDM:
        """The model with these parameters."""
        vdm: VDM = self.bind(self.params)
        return vdm


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags that name the model."""
    text, _, _ = cli.definers(values)
    text("workdir", "folder of the run: its config.json and checkpoints are all that is needed")
    text("checkpoint", "a step of the run, or a checkpoint's folder; the newest if not given")
    text("official", "in place of --workdir: a published checkpoint, ckpt-N.flax or its folder")
    text("model", "its configuration: cifar10, cifar10_aug, imagenet32, imagenet64, or a JSON file")


def load(options: Mapping[str, Any], shape: tuple[int, ...] | None = None) -> Source:
    """Returns the model that the flags name; no dataset is needed.

    A published model is for images of any size, here of `shape`. Raises UserError for a model that
    can't compress.
    """
    if bool(options["workdir"]) == bool(options["official"]):
        raise UserError(
            "name the model by one of --workdir=DIR, the folder of a run, and --official=PATH"
        )
    if options["official"]:
        if options["checkpoint"]:
            raise UserError("--official and --checkpoint exclude each other")
        return _of_official(Path(options["official"]), options["model"], shape)
    if options["model"]:
        raise UserError("--model goes with --official; a run has its own configuration")
    with jax.enable_x64(False):  # as it was trained, whatever JAX_ENABLE_X64 says
        return _of_run(Path(options["workdir"]), options["checkpoint"])


def _of_run(workdir: Path, checkpoint: str | None) -> Source:
    config, saved = restore.saved_config(workdir)
    config.model.dtype = "float32"  # parameters are; in float64 nothing narrower may come between
    check.config(config)
    event_shape, levels, classes = _images_of(workdir, saved)
    if classes:
        raise UserError(
            f"the run in {workdir} is conditioned on the class of an image, which images to be "
            "compressed don't have; train one without --config.data.class_labels"
        )
    model = make_model(config, event_shape, levels)
    facts = model.facts()
    if not isinstance(facts, VDM) or facts.levels is None:
        raise UserError(
            f"the run in {workdir} is no VDM of pixel levels ({facts.words}); only those compress"
        )
    mesh = sharding.make_mesh(build.make_mesh().devices.reshape(-1).tolist()[:1])
    step, params = restore.restored(workdir, checkpoint, model, mesh)
    settings = {name: config.model[name] for name in _FUNCTION}
    return Source(model.bind, jax.device_get(params), settings, f"{workdir}, step {step}")


def _images_of(workdir: Path, saved: Mapping[str, Any]) -> tuple[tuple[int, int, int], int, int]:
    """Returns what config.json says of the images: their shape, levels, and classes or 0."""
    match saved:
        case {"event_shape": [int(height), int(width), int(channels)], "levels": int(levels)}:
            classes = saved.get("classes", 0)
            size = math.prod((max(height, 0), max(width, 0), max(channels, 0)))
            if 1 <= size <= MOST_DIMS and 2 <= levels <= 256 and isinstance(classes, int):
                return (height, width, channels), levels, classes
    raise UserError(f"{workdir / 'config.json'} is damaged: it doesn't say of which images")


def _of_official(path: Path, name: str | None, shape: tuple[int, ...] | None) -> Source:
    loaded, published, said = restore.load_official(path, name)
    channels = len(loaded.params["score_model"]["conv_out"]["bias"])
    if shape is None or shape[-1] != channels:
        raise UserError(
            f"the checkpoint is for images of {channels} channel(s), but these have "
            f"{'none' if shape is None else shape[-1]}"
        )
    bind = loaded.bind(shape)
    return Source(bind, loaded.params, dict(published["model"]), f"{said}, step {loaded.step}")


@contextlib.contextmanager
def progress(words: str, total: int) -> Iterator[Progress]:
    """Gives what shows a bar of images; it goes back where the codec begins anew."""
    with Bar(words, total) as bar:
        shown = 0

        def tell(done: int, of: int) -> None:
            nonlocal shown
            at = total - of + done  # the others are seeds
            bar.advance(at - shown)
            shown = at

        yield tell


def free(given: str | None, flag: str) -> Path:
    """Returns a path to write to. Raises UserError if something is there already."""
    if not given:
        raise UserError(f"{flag} is missing: what to write")
    out = user_path(given, flag.split()[0])
    files.check_free(out)
    return out
