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
from vdm_jax.train import checksum, sharding
from vdm_jax.train.load_checkpoint import load_params
from vdm_jax.train.model import Params
from vdm_jax.train.record import filled

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


def write(
    path: Path, step: int, config: ConfigDict, data: Mapping[str, Any], params: Params
) -> None:
    """Writes a model's file. Paths of the machine stay out of it."""
    settings = config.to_dict()
    settings["data"] |= {"dir": None, "manual_dir": None, "path": None}
    text = json.dumps({"step": step, "config": settings, "data": dict(data)})
    leaves = checksum.named_leaves(jax.device_get(params))
    with np.errstate(over="ignore"):
        arrays: dict[str, Any] = {name: leaf.astype(np.float16) for name, leaf in leaves.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"{path} can't be written: a parameter is beyond float16's 65,504")
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
        config = ConfigDict(filled(defaults.get_config().to_dict(), said["config"]))
        params = {name: array.astype(np.float32) for name, array in arrays.items()}
        return Saved(
            Path(given), path.parent, int(said["step"]), config, dict(said["data"]), params
        )
    except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
        raise UserError(
            f"{path} is damaged, or no model's file that experiments.export wrote ({reason(error)})"
        ) from error


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
    wanted = checksum.named_leaves(expected)
    for name in sorted(of.params.keys() | wanted.keys()):
        has, needs = (leaves[name].shape if name in leaves else "absent"
                      for leaves in (of.params, wanted))  # fmt: skip
        if has != needs:
            said = f"the parameter {name} of {of.workdir} is {has}, but the configuration calls for"
            raise UserError(f"{said} {needs}: they belong to different models")
    params = jax.tree.unflatten(jax.tree.structure(expected), [of.params[name] for name in wanted])
    return jax.device_put(params, sharding.of_parameters(mesh, params))
