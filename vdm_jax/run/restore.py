"""A trained model, from a run's folder or from a published checkpoint, and the images for it."""

import contextlib
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax.data import ImageData
from vdm_jax.errors import UserError, reaching
from vdm_jax.evaluation.subject import Subject
from vdm_jax.nn import published, published_configs
from vdm_jax.run import build, cli, defaults, distributed, pretrained
from vdm_jax.run.config import check_config
from vdm_jax.run.models import make_model
from vdm_jax.run.pretrained import Saved
from vdm_jax.train import sharding
from vdm_jax.train.load_checkpoint import TRIES, RemovedError, complete_steps, load_settings
from vdm_jax.train.model import Model
from vdm_jax.train.record import differences, filled

T = TypeVar("T")

ENOUGH = "folder of the run: its checkpoints are enough"


def define_flags(values: flags.FlagValues, what: str, images: str) -> None:
    """Defines the flags of `from_options`; `what` it leaves, `images` it does to images."""
    define_model_flags(values, f"folder of the run; with --official, where the {what} go")
    text, _, _ = cli.definers(values)
    text("out", f"another folder that the {what} go to")
    text("data", f"{images} other images: the name of a dataset")
    text("path", "the file or folder of --data=arrays or folder")
    text("manual_dir", "folder with a dataset's original archives")
    text("data_dir", "where datasets are kept; default $VDM_JAX_DATA")
    distributed.define_flags(values)


def define_model_flags(values: flags.FlagValues, workdir: str = ENOUGH) -> None:
    """Defines the flags of `load`; `workdir` is what --help says of the first."""
    text, _, _ = cli.definers(values)
    text("workdir", workdir)
    text("checkpoint", "a step of the run, or a checkpoint's folder; the newest if not given")
    text("pretrained", f"a model in one file: {', '.join(pretrained.NAMES)}, or one of your own")
    text("official", "a published checkpoint: the file ckpt-N.flax, or its folder")
    text("model", "its configuration: cifar10, cifar10_aug, imagenet32, imagenet64, or a JSON file")


def from_options(options: Mapping[str, Any], mesh: Mesh) -> Subject:
    """Returns the model and dataset that `define_flags` names, the same in all processes.

    `options["batch_size"]` takes the place of the configuration's.
    """
    _check_flags(options)
    alone = options["official"] or options["pretrained"]
    if not options["workdir"] and not (alone and options["out"]):
        of = "--official or --pretrained"
        raise UserError(f"--workdir=DIR is missing: the folder of the run; or {of}, and --out")
    names = {"name": "data", "path": "path", "manual_dir": "manual_dir", "dir": "data_dir"}
    data = {key: options[flag] for key, flag in names.items() if options[flag] is not None}
    elsewhere = ("path", "manual_dir", "data_dir", "process_id")
    distributed.agree({f"--{key}": value for key, value in options.items() if key not in elsewhere})
    if options["official"]:
        found = _from_official(options, data, mesh)
    else:
        found = _newest(lambda: _with_images(saved_by(options), data, mesh))
    distributed.agree({"data": build.describe(found.images)})
    return found._replace(batch_size=options["batch_size"] or found.batch_size)


def load(options: Mapping[str, Any], mesh: Mesh, shape: tuple[int, ...]) -> Subject:
    """Returns the model, without a dataset, that the flags of `define_model_flags` name.

    It computes in float32. A run's checkpoint says of which images it is; a published model is for
    images of any size, here of `shape`, which may be without channels.
    """
    if sum(bool(options[name]) for name in ("workdir", "official", "pretrained")) != 1:
        raise UserError("name the model by one of --workdir=RUN, --official and --pretrained")
    _check_flags(options)
    if options["official"]:
        return _official(options, mesh, shape, "what is given")
    return _newest(lambda: _to_compress(saved_by(options), mesh, shape))


def _to_compress(of: Saved, mesh: Mesh, given: tuple[int, ...]) -> Subject:
    # In float64 nothing narrower may come between.
    of.config.model.update(dtype="float32", fused_attention=False)
    check_config(of.config)
    shape, levels, condition = pretrained.images_told(of)
    if of.params is not None:  # of a file: its network takes images of other sizes, too
        if given[2:] not in ((), shape[2:]):
            said = f"{of.workdir} is for images of {shape[2]} channel(s), but what is given has"
            raise UserError(f"{said} {given[2]}")
        if of.config.model.network not in ("unet", "pyramid") and given[:2] != shape[:2]:
            said = "{} is for images of {}x{}, but what is given has {}x{}"
            raise UserError(said.format(of.workdir, *shape[:2], *given[:2]))
        shape, parts = (*given[:2], shape[2]), 2 ** of.config.model.multipliers.count(",")
        if of.config.model.network == "pyramid" and any(side % parts for side in given[:2]):
            said = f"{of.workdir} takes images whose sides are multiples of {parts}, not"
            raise UserError(f"{said} {given[0]}x{given[1]}; --tile={16 * parts} cuts a folder's")
    model = make_model(of.config, shape, levels, condition)
    return _restored(of, mesh, of.config, model)._replace(condition=condition)


def from_workdir(workdir: Path | str, mesh: Mesh) -> Subject:
    """Returns the newest model of a run's folder, or that in one file, with its training's data."""
    return _newest(lambda: _with_images(named(str(workdir)), {}, mesh))


def _with_images(of: Saved, data: Mapping[str, Any], mesh: Mesh) -> Subject:
    c, images = images_of(of, data)
    model = make_model(c, images.event_shape, images.levels, images.condition)
    return _with(_restored(of, mesh, c, model), images, c)


def _from_official(options: Mapping[str, Any], data: Mapping[str, Any], mesh: Mesh) -> Subject:
    """Returns a published checkpoint, with the data it was trained on, or that `data` names."""
    known = published_configs.find(Path(options["official"]), options["model"])[0].get("data")
    if "name" not in data and known is None:
        raise UserError("--data=NAME is missing: a model_config.json doesn't say which images")
    c = with_data(defaults.get_config(), {"name": known, **data})
    images = build.load(c)
    found = _official(options, mesh, images.event_shape, images.name)
    levels, name = found.model.facts().levels, images.name
    if levels != images.levels:
        raise UserError(f"the checkpoint is for {levels} levels, but {name} has {images.levels}")
    if images.conditions is not None:
        raise UserError(f"a published checkpoint takes no condition, but {name} has one")
    return _with(found, images, c)


def images_of(of: Saved, data: Mapping[str, Any]) -> tuple[ConfigDict, ImageData]:
    """Returns a run's configuration, and the data it was trained on, or that `data` names."""
    workdir, saved = of.workdir, of.data
    c = with_data(of.config, data, saved.get("levels"))
    check_config(c)
    images = build.load(c)
    now, asked = build.describe(images), not data.keys().isdisjoint({"name", "path"})
    for key in ("fingerprint", "labels", "conditions"):
        if not asked and saved.get(key) not in (None, now.get(key)):
            what = "images" if key == "fingerprint" else key
            said = f"{images.name} holds other {what} than the run in {workdir} was trained with"
            raise UserError(f"{said}; to take them nevertheless, name them with --data")
    for what, has, wanted in (
        ("levels", images.levels, saved.get("levels", images.levels)),
        ("classes", images.num_classes, saved.get("classes", 0)),
        ("numbers to condition on", images.condition.numbers, saved.get("condition", 0)),
    ):
        if has != wanted:
            said = f"the run in {workdir} is of images with {wanted} {what}"
            raise UserError(f"{said}, but {images.name} has {has}: take images of its kind")
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


def saved(workdir: Path, checkpoint: str | None = None) -> Saved:
    """Returns the settings sealed in a run's checkpoint, by default the newest.

    `checkpoint` is a step of that run, or the folder of one checkpoint. config.json is a copy for
    people; where it says something else, that is printed.
    """
    file = workdir / "config.json"
    with reaching(file):
        if not (file.is_file() or (workdir / "checkpoints").is_dir()):
            raise UserError(f"{workdir} holds no run: it has no config.json")
    folder, asked = _chosen(workdir, checkpoint)
    step, sealed = load_settings(folder, asked)
    copy, source = dict[str, Any](), folder / str(step)
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        copy = dict(json.loads(file.read_text(encoding="utf-8")))
    if "config" not in sealed:
        raise UserError(f"{source} has no settings in it; name another --checkpoint, or train anew")
    own = folder.resolve() == (workdir / "checkpoints").resolve()
    if own and sealed != copy:
        found = "; ".join(line for _, line in differences(sealed, copy)) if copy else "unreadable"
        print(f"{file} is not what step {step} was made with ({found}): the settings sealed in the "
              "checkpoint are used", flush=True)  # fmt: skip
    try:
        config = ConfigDict(filled(defaults.get_config().to_dict(), sealed["config"]))
        name = workdir if own else source
        return Saved(name, folder, step, config, dict(sealed.get("data", {})))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source} is damaged ({type(error).__name__}: {error})") from error


def _with(found: Subject, images: ImageData, c: ConfigDict) -> Subject:
    """Returns the model with a dataset, and the numbers of an evaluation by `c`."""
    numbers = {"batch_size": c.eval.batch_size, "repeats": c.eval.final_repeats}
    return found._replace(images=images, part=build.eval_name(c), **numbers)


def _check_flags(options: Mapping[str, Any]) -> None:
    for one, other in itertools.combinations(("official", "pretrained", "checkpoint"), 2):
        if options[one] and options[other]:
            raise UserError(f"--{one} and --{other} exclude each other")
    if options["official"] and not Path(options["official"]).exists():
        raise UserError(f"--official: no checkpoint file or folder at {options['official']}")
    if options["model"] and not options["official"]:
        raise UserError("--model goes with --official; a run has its own configuration")


def _newest(read: Callable[[], T]) -> T:
    """Returns what `read` does, which begins anew where a run removed the checkpoint meanwhile."""
    for _ in range(TRIES - 1 if jax.process_count() == 1 else 0):
        with contextlib.suppress(RemovedError):
            return read()
    return read()


def saved_by(options: Mapping[str, Any]) -> Saved:
    """Returns the settings that --pretrained names, or --workdir and --checkpoint."""
    if given := options["pretrained"]:
        return pretrained.read(given)
    return saved(Path(options["workdir"]), options["checkpoint"])


def named(given: str) -> Saved:
    """Returns the newest checkpoint of a run's folder, or the model in one file."""
    path = Path(given)  # a folder of pictures may well be called photos
    is_run = path.is_dir() and (given not in pretrained.NAMES or (path / "config.json").is_file())
    return saved(path) if is_run else pretrained.read(given)


def _restored(of: Saved, mesh: Mesh, c: ConfigDict, model: Model) -> Subject:
    params = pretrained.parameters(of, jax.eval_shape(model.init, jax.random.key(0)), mesh)
    return Subject(model, params, None, 0, mesh, str(of.workdir), of.step, c.model.to_dict())


def _chosen(workdir: Path, checkpoint: str | None) -> tuple[Path, int | None]:
    """Returns the folder of a run's checkpoints, or another that `checkpoint` names, and a step."""
    folder = workdir / "checkpoints"
    if checkpoint is None:  # a run that goes on may save a newer one meanwhile
        return folder, distributed.of_first(max(complete_steps(folder), default=None))
    if checkpoint.isdecimal():
        return folder, int(checkpoint)
    path = Path(checkpoint)
    with reaching(path):
        is_checkpoint = path.is_dir() and path.name.isdecimal()
    if not is_checkpoint:
        said = f"--checkpoint={checkpoint} is neither a step nor the folder of a checkpoint, as"
        raise UserError(f"{said} {folder / '1000'}")
    return path.parent, int(path.name)


def _official(options: Mapping[str, Any], mesh: Mesh, shape: tuple[int, ...], of: str) -> Subject:
    """Returns a published checkpoint for images of `shape`, which errors call `of`."""
    path = Path(options["official"])
    known, name = published_configs.find(path, options["model"])
    try:
        loaded = published.load(path, known["model"])
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"--official: {error}") from error
    channels = len(loaded.params["score_model"]["conv_out"]["bias"])
    if shape[2:] not in ((), (channels,)):
        said = f"the checkpoint is for images of {channels} channel(s), but {of} has"
        raise UserError(f"{said} {shape[-1]}")
    model = Model(lambda key: loaded.params, loaded.bind((*shape[:2], channels)))
    params = jax.device_put(loaded.params, sharding.of_parameters(mesh, loaded.params))
    return Subject(model, params, None, 0, mesh, name, loaded.step, known["model"])
