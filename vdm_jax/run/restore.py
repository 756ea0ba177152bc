"""A trained model, from a run's folder or from a published checkpoint, and the images for it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax.data import ImageData
from vdm_jax.errors import UserError, reaching
from vdm_jax.evaluation.subject import Subject
from vdm_jax.nn import published, published_configs
from vdm_jax.run import build, cli, defaults, distributed
from vdm_jax.run.config import check_config
from vdm_jax.run.models import make_model
from vdm_jax.train import sharding
from vdm_jax.train.checkpoint import complete_steps, load_params
from vdm_jax.train.model import Bound, Model, Params
from vdm_jax.train.settings import filled
from vdm_jax.vdm import VDM

__all__ = ["Restored", "define_flags", "define_model_flags", "from_official", "from_options",
           "from_workdir", "images_of", "load", "saved_config", "with_data"]  # fmt: skip

MOST_DIMS = 1 << 24  # of an image


class Restored(NamedTuple):
    """A model with its EMA parameters, and the dataset to evaluate it on.

    `settings` is `config.model` of the run or of the published code; `num_classes` is 0 for a model
    that isn't conditioned on a class. What follows them isn't there after `load`; `batch_size` and
    `repeats`, the draws of each image, are those of an evaluation by its configuration.
    """

    model: Model
    params: Params
    name: str
    step: int
    num_classes: int
    settings: Mapping[str, Any]
    images: Any = None
    part: str = "test"
    batch_size: int = 0
    repeats: int = 0

    @property
    def bound(self) -> Bound:
        """The model with these parameters: static fields and its schedule can be read off it."""
        return cast(Bound, self.model.bind(self.params))

    @property
    def vdm(self) -> VDM:
        """The model as a VDM. Raises UserError if it is of another kind."""
        bound = self.bound
        if not isinstance(bound, VDM):
            raise UserError(f"{self.name} is no VDM: {bound.words}")
        return bound

    def on(self, mesh: Mesh, batch_size: int | None = None) -> Subject:
        """Returns what an evaluation takes."""
        return Subject(self.model, self.params, self.images, batch_size or self.batch_size, mesh)

    def _with(self, images: ImageData, c: ConfigDict) -> "Restored":
        """Returns the model with a dataset, and the numbers of an evaluation by `c`."""
        return self._replace(
            images=images, part=build.eval_name(c), batch_size=c.eval.batch_size,
            repeats=c.eval.final_repeats,
        )  # fmt: skip


def define_flags(values: flags.FlagValues, what: str, images: str) -> None:
    """Defines the flags of `from_options`; `what` it leaves, `images` it does to images."""
    define_model_flags(values, f"folder of the run; with --official, where the {what} go")
    text, _, _ = cli.definers(values)
    text("data", f"{images} other images: the name of a data set")
    text("path", "the file or folder of --data=arrays or folder")
    text("manual_dir", "folder with a data set's original archives")
    text("data_dir", "where data sets are kept; default $VDM_JAX_DATA")
    distributed.define_flags(values)


def define_model_flags(values: flags.FlagValues, workdir: str) -> None:
    """Defines the flags of `load`; `workdir` is what --help says of the first."""
    text, _, _ = cli.definers(values)
    text("workdir", workdir)
    text("checkpoint", "a step of the run, or a checkpoint's folder; the newest if not given")
    text("official", "a published checkpoint: the file ckpt-N.flax, or its folder")
    text("model", "its configuration: cifar10, cifar10_aug, imagenet32, imagenet64, or a JSON file")


def from_options(workdir: Path, options: Mapping[str, Any], mesh: Mesh) -> Restored:
    """Returns the model and dataset that `define_flags` names, the same in all processes."""
    _check_flags(options)
    names = {"name": "data", "path": "path", "manual_dir": "manual_dir", "dir": "data_dir"}
    data = {key: options[flag] for key, flag in names.items() if options[flag] is not None}
    elsewhere = ("path", "manual_dir", "data_dir", "process_id")
    distributed.agree({f"--{key}": value for key, value in options.items() if key not in elsewhere})
    if path := options["official"]:
        found = from_official(Path(path), options["model"], data, mesh)
    else:
        found = from_workdir(workdir, options["checkpoint"], data, mesh)
    distributed.agree({"data": build.describe(found.images)})
    return found


def load(
    options: Mapping[str, Any], mesh: Mesh, shape: tuple[int, ...] | None = None, dtype: str = ""
) -> Restored:
    """Returns the model that the flags workdir, checkpoint, official and model name.

    No dataset is needed: config.json says of which images a run is, and a published model is for
    images of any size, here of `shape`. `dtype` takes the place of a run's config.model.dtype.
    """
    if bool(options["workdir"]) == bool(options["official"]):
        raise UserError("name the model by one of --workdir=DIR, a run's folder, and --official")
    _check_flags(options)
    if options["official"]:
        return _official(Path(options["official"]), options["model"], mesh, shape, "what is given")
    workdir = Path(options["workdir"])
    c, saved = saved_config(workdir)
    c.model.dtype = dtype or c.model.dtype
    check_config(c)
    return _run(workdir, options["checkpoint"], mesh, c, *_images_of(workdir, saved))


def from_workdir(
    workdir: Path, checkpoint: str | None, data: Mapping[str, Any], mesh: Mesh
) -> Restored:
    """Returns the model of a run's folder, with the data it was trained on, or that `data` names.

    `checkpoint` is a step of that run, or the folder of one checkpoint; None is the newest.
    """
    c, images = images_of(workdir, data)
    of = images.event_shape, images.levels, images.num_classes
    return _run(workdir, checkpoint, mesh, c, *of)._with(images, c)


def from_official(
    path: Path, model_name: str | None, data: Mapping[str, Any], mesh: Mesh
) -> Restored:
    """Returns a published checkpoint, with the data it was trained on, or that `data` names.

    `model_name` is one of `published_configs`, or a JSON file with that code's `config.model`; None
    looks for `model_config.json` beside the checkpoint.
    """
    known = published_configs.find(path, model_name)[0].get("data")
    if not data and known is None:
        raise UserError("--data=NAME is missing: a model_config.json doesn't say which images")
    c = with_data(defaults.get_config(), {"name": known, **data})
    images = build.load(c)
    found = _official(path, model_name, mesh, images.event_shape, images.name)
    levels, name = found.model.facts().levels, images.name
    if levels != images.levels:
        raise UserError(f"the checkpoint is for {levels} levels, but {name} has {images.levels}")
    return found._with(images, c)


def images_of(workdir: Path, data: Mapping[str, Any]) -> tuple[ConfigDict, ImageData]:
    """Returns a run's configuration, and the data it was trained on, or that `data` names."""
    c, saved = saved_config(workdir)
    c = with_data(c, data, saved.get("levels"))
    check_config(c)
    images = build.load(c)
    if not data and saved.get("fingerprint") not in (None, images.fingerprint):
        raise UserError(
            f"{images.name} holds other images than the run in {workdir} was trained with; to "
            "evaluate it on them nevertheless, name them with --data"
        )
    for what, has, wanted in (
        ("levels", images.levels, saved.get("levels", images.levels)),
        ("classes", images.num_classes, saved.get("classes", 0)),
    ):
        if has != wanted:
            raise UserError(
                f"the run in {workdir} is of images with {wanted} {what}, but {images.name} has "
                f"{has}: no number found on them would be its bits per dim"
            )
    return c, images


def with_data(c: ConfigDict, data: Mapping[str, Any], levels: int | None = None) -> ConfigDict:
    """Returns `c` with other images: what of its own settings suits them stays.

    `levels` is how arrays are read, by default with all 256.
    """
    name = data.get("name")
    if name is not None:
        c.data.update(validation=0, levels=levels if name == "arrays" and levels else 256)
        if name not in ("arrays", "folder"):
            c.data.path = None
        if name != "folder":
            plain = defaults.DEFAULTS["data"]
            c.data.update(size=None, held_out=None, fit=plain["fit"], channels=plain["channels"])
    with c.data.ignore_type():
        c.data.update({k: v for k, v in data.items() if v is not None})
    return c


def saved_config(workdir: Path) -> tuple[ConfigDict, Mapping[str, Any]]:
    """Returns the configuration of a run, and what its config.json says of the data."""
    file = workdir / "config.json"
    with reaching(file):
        if not file.is_file():
            raise UserError(f"--workdir={workdir} holds no run: it has no config.json")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        c = ConfigDict(filled(defaults.get_config().to_dict(), saved["config"]))
        return c, dict(saved.get("data", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}: {error})") from error


def _check_flags(options: Mapping[str, Any]) -> None:
    if options["official"] and options["checkpoint"]:
        raise UserError("--official and --checkpoint exclude each other")
    if options["model"] and not options["official"]:
        raise UserError("--model goes with --official; a run has its own configuration")


def _images_of(workdir: Path, saved: Mapping[str, Any]) -> tuple[tuple[int, ...], int, int]:
    """Returns what config.json says of the images: their shape, levels, and classes or 0."""
    match {"classes": 0, **saved}:
        case {"event_shape": [int(), int(), int()] as shape, "levels": int(levels),
              "classes": int(classes)}:  # fmt: skip
            fits = min(shape) >= 1 and math.prod(shape) <= MOST_DIMS and 2 <= levels <= 256
            if fits and classes >= 0:
                return tuple(shape), levels, classes
    raise UserError(f"{workdir / 'config.json'} is damaged: it doesn't say of which images")


def _run(
    workdir: Path, checkpoint: str | None, mesh: Mesh, c: ConfigDict, shape: tuple[int, ...],
    levels: int, classes: int,
) -> Restored:  # fmt: skip
    """Returns a run's model for such images, with the checkpoint that `from_workdir` describes."""
    model, folder = make_model(c, shape, levels, classes), workdir / "checkpoints"
    step: int | None
    if checkpoint is not None and checkpoint.isdecimal():
        step = int(checkpoint)
    elif checkpoint is not None:
        path = Path(checkpoint)
        with reaching(path):
            is_checkpoint = path.is_dir() and path.name.isdecimal()
        if not is_checkpoint:
            said = f"--checkpoint={checkpoint} is neither a step nor the folder of a checkpoint, as"
            raise UserError(f"{said} {folder / '1000'}")
        folder, step = path.parent, int(path.name)
    else:  # a run that goes on may save a newer one meanwhile
        step = distributed.of_first(max(complete_steps(folder), default=None))
    expected = jax.eval_shape(model.init, jax.random.key(0))
    step, params = load_params(folder, expected, mesh, step)
    return Restored(model, params, str(workdir), step, classes, c.model.to_dict())


def _official(
    path: Path, name: str | None, mesh: Mesh, shape: tuple[int, ...] | None, named: str
) -> Restored:
    """Returns a published checkpoint for images of `shape`, `named` so in errors."""
    known, name = published_configs.find(path, name)
    try:
        loaded = published.load(path, known["model"])
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"--official: {error}") from error
    channels = len(loaded.params["score_model"]["conv_out"]["bias"])
    if shape is None or shape[-1] != channels:
        raise UserError(
            f"the checkpoint is for images of {channels} channel(s), but {named} has "
            f"{'none' if shape is None else shape[-1]}"
        )
    model = Model(lambda key: loaded.params, loaded.bind(shape))
    params = jax.device_put(loaded.params, sharding.of_parameters(mesh, loaded.params))
    return Restored(model, params, name, loaded.step, 0, known["model"])
