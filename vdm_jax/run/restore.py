"""A trained model, from a run's folder or from a published checkpoint, and the images for it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax.data import ImageData
from vdm_jax.errors import UserError, reaching
from vdm_jax.nn import published as official
from vdm_jax.nn.published_configs import PUBLISHED
from vdm_jax.run import build as setup
from vdm_jax.run import cli, rendezvous
from vdm_jax.run import config as check
from vdm_jax.run import defaults as base
from vdm_jax.run import distributed as cluster
from vdm_jax.run.models import make_model
from vdm_jax.train import sharding
from vdm_jax.train.checkpoint import load_params
from vdm_jax.train.model import Bound, Model, Params
from vdm_jax.train.settings import filled
from vdm_jax.vdm import VDM

__all__ = [
    "Restored",
    "define_flags",
    "from_official",
    "from_options",
    "from_workdir",
    "images_of",
    "load_official",
    "restored",
    "saved_config",
    "with_data",
]


class Restored(NamedTuple):
    """A model with its parameters, and the dataset to evaluate it on."""

    model: Model
    """Model: how a bound is made of parameters."""
    params: Params
    """EMA parameters, as `vdm_jax.train.sharding.of_parameters` has them."""
    images: ImageData
    """Dataset."""
    part: str
    """Name of its test images in reports."""
    name: str
    """Name of the model in reports."""
    step: int
    """Number of steps that it was trained."""
    batch_size: int
    """Batch size of an evaluation, by its configuration."""
    repeats: int
    """Draws of each image in an evaluation, by its configuration."""

    @property
    def bound(self) -> Bound:
        """The model with these parameters: static fields and its schedule can be read off it."""
        bound: Bound = self.model.bind(self.params)
        return bound

    @property
    def vdm(self) -> VDM:
        """The same as a VDM. Raises UserError if it is of another kind."""
        bound = self.bound
        if not isinstance(bound, VDM):
            raise UserError(f"{self.name} is no VDM: {bound.words}")
        return bound


def define_flags(values: flags.FlagValues, what: str, images: str) -> None:
    """The flags that `from_options` reads, with what the command leaves and does with images."""
    text, _, _ = cli.definers(values)
    text("workdir", f"folder of the run; with --official, where the {what} go")
    text("checkpoint", "a step of the run, or a checkpoint's folder; the newest if not given")
    text("official", "a published checkpoint: the file ckpt-N.flax, or its folder")
    text("model", "its configuration: cifar10, cifar10_aug, imagenet32, imagenet64, or a JSON file")
    text("data", f"{images} other images: the name of a data set")
    text("path", "the file or folder of --data=arrays or folder")
    text("manual_dir", "folder with a data set's original archives")
    text("data_dir", "where data sets are kept; default $VDM_JAX_DATA")
    rendezvous.define_flags(values)


def from_options(workdir: Path, options: Mapping[str, Any], mesh: Mesh) -> Restored:
    """The model and data that a command's flags name, the same in all processes.

    These are checkpoint, official, model, data, path, manual_dir and data_dir.
    """
    if options["official"] and options["checkpoint"]:
        raise UserError("--official and --checkpoint exclude each other")
    names = {"name": "data", "path": "path", "manual_dir": "manual_dir", "dir": "data_dir"}
    data = {key: options[flag] for key, flag in names.items() if options[flag] is not None}
    elsewhere = ("path", "manual_dir", "data_dir", "process_id")
    cluster.agree({f"--{name}": value for name, value in options.items() if name not in elsewhere})
    if options["official"]:
        found = from_official(Path(options["official"]), options["model"], data, mesh)
    elif options["model"]:
        raise UserError("--model goes with --official; a run has its own configuration")
    else:
        found = from_workdir(workdir, options["checkpoint"], data, mesh)
    cluster.agree({"data": setup.describe(found.images)})
    return found


def from_workdir(
    workdir: Path, checkpoint: str | None, data: Mapping[str, Any], mesh: Mesh
) -> Restored:
    """The model of a run's folder, with the data it was trained on, or that `data` names.

    `checkpoint` is a step of that run, or the folder of one checkpoint; None is the newest.
    """
    config, images = images_of(workdir, data)
    model = make_model(config, images.event_shape, images.levels, images.num_classes)
    step, params = restored(workdir, checkpoint, model, mesh)
    c = config.eval
    part = setup.eval_name(config)
    return Restored(model, params, images, part, str(workdir), step, c.batch_size, c.final_repeats)


def images_of(workdir: Path, data: Mapping[str, Any]) -> tuple[ConfigDict, ImageData]:
    """The configuration of a run, and the data it was trained on, or that `data` names."""
    config, saved = saved_config(workdir)
    config = with_data(config, data, saved.get("levels"))
    check.config(config)
    images = setup.load(config)
    _check_same_kind(workdir, saved, images, bool(data))
    return config, images


def restored(workdir: Path, checkpoint: str | None, model: Model, mesh: Mesh) -> tuple[int, Params]:
    """The step and the EMA parameters of a run's checkpoint, as `from_workdir` names it."""
    folder, step = workdir / "checkpoints", None
    if checkpoint is not None:
        folder, step = _checkpoint(workdir, checkpoint)
    if step is None and folder.is_dir():  # a run that goes on may save a newer one meanwhile
        step = cluster.of_first(max(ocp.utils.checkpoint_steps(folder), default=None))
    expected = jax.eval_shape(model.init, jax.random.key(0))
    return load_params(folder, expected, mesh, step)


def from_official(
    path: Path, model_name: str | None, data: Mapping[str, Any], mesh: Mesh
) -> Restored:
    """A published checkpoint, with the data it was trained on, or that `data` names.

    `model_name` is a key of `PUBLISHED` or a JSON file with that code's `config.model`; None looks
    for `model_config.json` beside the checkpoint.
    """
    loaded, published, name = load_official(path, model_name)
    if not data and published.get("data") is None:
        raise UserError("--data=NAME is missing: a model_config.json doesn't say which images")
    config = with_data(base.get_config(), {"name": published.get("data"), **data})
    images = setup.load(config)
    _check_channels(loaded, images)

    model = Model(lambda key: loaded.params, loaded.bind(images.event_shape))
    params = jax.device_put(loaded.params, sharding.of_parameters(mesh, loaded.params))
    c = config.eval
    part = setup.eval_name(config)
    return Restored(model, params, images, part, name, loaded.step, c.batch_size, c.final_repeats)


def load_official(
    path: Path, model_name: str | None
) -> tuple[official.OfficialModel, Mapping[str, Any], str]:
    """A published checkpoint, its {"model": configuration, "data": name or None}, and its name."""
    published, name = _official_config(path, model_name)
    try:
        return official.load(path, published["model"]), published, name
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"--official: {error}") from error


def with_data(config: ConfigDict, data: Mapping[str, Any], levels: int | None = None) -> ConfigDict:
    """`config` with other images: what of its own settings suits them stays.

    `levels` is how arrays are read, by default with all 256.
    """
    name = data.get("name")
    if name is not None:
        config.data.validation = 0
        config.data.levels = levels if name == "arrays" and levels else 256
        if name not in ("arrays", "folder"):
            config.data.path = None
        if name != "folder":
            defaults = base.get_config().data
            config.data.update({k: defaults[k] for k in ("size", "fit", "channels", "held_out")})
    with config.data.ignore_type():
        config.data.update({k: v for k, v in data.items() if v is not None})
    return config


def saved_config(workdir: Path) -> tuple[ConfigDict, Mapping[str, Any]]:
    """The configuration of a run, and what its config.json says of the data."""
    file = workdir / "config.json"
    with reaching(file):
        is_run = file.is_file()
    if not is_run:
        raise UserError(f"--workdir={workdir} holds no run: it has no config.json")
    try:
        saved = json.loads(file.read_text())
        config = ConfigDict(filled(base.get_config().to_dict(), saved["config"]))
        return config, dict(saved.get("data", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}: {error})") from error


def _check_same_kind(
    workdir: Path, saved: Mapping[str, Any], images: ImageData, other_data: bool
) -> None:
    """Whether a number found on these images says anything of the run."""
    if not other_data and saved.get("fingerprint") not in (None, images.fingerprint):
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


def _checkpoint(workdir: Path, given: str) -> tuple[Path, int]:
    if given.isdecimal():
        return workdir / "checkpoints", int(given)
    path = Path(given)
    with reaching(path):
        is_folder = path.is_dir()
    if not is_folder or not path.name.isdecimal():
        raise UserError(
            f"--checkpoint={given} is neither a step nor the folder of a checkpoint, as "
            f"{workdir / 'checkpoints' / '1000'}"
        )
    return path.parent, int(path.name)


def _official_config(path: Path, name: str | None) -> tuple[Mapping[str, Any], str]:
    """{"model": that code's config.model, "data": the data set's name or None}, and a name."""
    if name is not None and name in PUBLISHED:
        bpd = PUBLISHED[name]["bpd"]
        said = f" (its README: {bpd} bits per dim)" if bpd else ""
        return PUBLISHED[name], f"published {name}{said}"
    known = ", ".join(PUBLISHED)
    if name is not None:
        file = Path(name)
        with reaching(file):
            is_file = file.is_file()
        if not is_file:
            raise UserError(f"--model={name} is no file and none of {known}")
    else:
        folders = (path, path.parent, path.parent.parent)
        files = [folder / "model_config.json" for folder in folders]
        found = [file for file in files if file.is_file()]
        if not found:
            raise UserError(
                f"--model=NAME is missing, one of {known}, or a JSON file with the model's "
                f"configuration (there is no model_config.json beside {path})"
            )
        file = found[0]
    try:
        return {"model": json.loads(file.read_text())}, f"official {file.parent.name}"
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON file: {error}") from error


def _check_channels(model: official.OfficialModel, images: ImageData) -> None:
    bias = model.params["score_model"]["conv_out"]["bias"]
    channels = images.event_shape[-1]
    if np.shape(bias) != (channels,):
        raise UserError(
            f"the checkpoint is for images of {len(bias)} channel(s), but {images.name} has "
            f"{channels}"
        )
    if model.levels != images.levels:
        raise UserError(
            f"the checkpoint is for {model.levels} levels, but {images.name} has {images.levels}"
        )
