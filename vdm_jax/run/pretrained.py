"""A trained model as a run saved it, or in one file of float16 parameters and settings.

`vdm_jax/pretrained` holds those that come with the package; `experiments.export` writes others.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax import files
from vdm_jax.data import Condition
from vdm_jax.errors import UserError, reason, user_path
from vdm_jax.run import defaults
from vdm_jax.train import record, sharding
from vdm_jax.train.load_checkpoint import load_params
from vdm_jax.train.model import Params

FOLDER = Path(__file__).parents[1] / "pretrained"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.npz")))
_SETTINGS = "settings"
MOST_DIMS = 1 << 24  # of an image


class Saved(NamedTuple):
    """The settings that a model was made with, what they say of the data, and where it is."""

    workdir: Path  # of the run, or the model's file
    folder: Path
    step: int
    config: ConfigDict
    data: Mapping[str, Any]
    params: Mapping[str, np.ndarray] | None = None  # of a file, by name; a run's are in `folder`


def write(path: Path, of: Saved, params: Params) -> None:
    """Writes a model's file. Paths of the machine stay out of it."""
    settings = of.config.to_dict()
    settings["data"] |= {"dir": None, "manual_dir": None, "path": None}
    text = json.dumps({"step": of.step, "config": settings, "data": dict(of.data)})
    leaves = record.named_leaves(jax.device_get(params))
    with np.errstate(over="ignore"):
        arrays: dict[str, Any] = {name: leaf.astype(np.float16) for name, leaf in leaves.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"{of.workdir}: a parameter isn't a number, or beyond float16's 65,504")
    with files.whole(path) as file:
        np.savez(file, **arrays | {_SETTINGS: np.frombuffer(text.encode(), np.uint8)})


def read(given: str) -> Saved:
    """Returns the model of the package of that name, or of that file. Raises UserError."""
    path = FOLDER / f"{given}.npz" if given in NAMES else user_path(given, "--pretrained")
    if not path.is_file():
        known = ", ".join(NAMES)
        raise UserError(f"{given} is neither a model's file nor one of the package: {known}")
    try:
        with np.load(path) as archive:
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
        said = json.loads(arrays.pop(_SETTINGS).tobytes())
        config = ConfigDict(record.filled(defaults.get_config().to_dict(), said["config"]))
        params = {name: array.astype(np.float32) for name, array in arrays.items()}
        step, about = int(said["step"]), dict(said["data"])
        return Saved(Path(given), path.parent, step, config, about, params)
    except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
        said = f"{path} is damaged, or no model's file that experiments.export wrote"
        raise UserError(f"{said} ({reason(error)})") from error


def images_told(of: Saved) -> tuple[tuple[int, ...], int, Condition]:
    """Returns what a checkpoint says of its images: their shape, levels, and condition."""
    match {"classes": 0, "condition": 0, **of.data}:
        case {"event_shape": [int(), int(), int()] as shape, "levels": int(levels),
              "classes": int(classes), "condition": int(numbers)}:  # fmt: skip
            fits = min(shape) >= 1 and math.prod(shape) <= MOST_DIMS and 2 <= levels <= 256
            if fits and min(classes, numbers) >= 0:
                return tuple(shape), levels, Condition(classes, numbers)
    where = of.workdir if of.params is not None else f"the checkpoint {of.folder / str(of.step)}"
    raise UserError(f"{where} doesn't say of which images it is")


def parameters(of: Saved, expected: Params, mesh: Mesh) -> Params:
    """Returns a model's parameters, of the shapes of `expected`, over the mesh.

    Raises UserError where they have other shapes.
    """
    if of.params is None:
        return load_params(of.folder, expected, mesh, of.step)[1]
    forms = {name: record.form(array) for name, array in of.params.items()}
    record.check_fits({"leaves": forms}, expected, of.workdir)
    leaves = [of.params[name] for name in record.named_leaves(expected)]
    params = jax.tree.unflatten(jax.tree.structure(expected), leaves)
    return jax.device_put(params, sharding.of_parameters(mesh, params))
