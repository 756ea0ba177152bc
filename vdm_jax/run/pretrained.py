"""A trained model in one file: its parameters as float16, and the settings that it was made with.

`vdm_jax/pretrained` holds those that come with the package; `experiments.export` writes others.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from vdm_jax import files
from vdm_jax.errors import UserError, reason, user_path
from vdm_jax.run import defaults
from vdm_jax.train.model import Params
from vdm_jax.train.settings import filled

FOLDER = Path(__file__).parents[1] / "pretrained"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.npz")))
_SETTINGS = "settings"


class Saved(NamedTuple):
    """The settings that a model was made with, what they say of the data, and where it is."""

    workdir: Path  # of the run, or the model's file
    folder: Path
    step: int
    config: ConfigDict
    data: Mapping[str, Any]
    params: Params = None  # of a file; those of a run lie in `folder`


def write(
    path: Path, step: int, config: ConfigDict, data: Mapping[str, Any], params: Params
) -> None:
    """Writes a model's file. Paths of the machine stay out of it."""
    settings = config.to_dict()
    settings["data"] |= {"dir": None, "manual_dir": None, "path": None}
    text = json.dumps({"step": step, "config": settings, "data": dict(data)})
    leaves = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    arrays = {name: np.asarray(leaf, np.float16) for name, leaf in leaves.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"{path} can't be written: a parameter is beyond float16's 65,504")
    with files.whole(path) as file:
        np.savez(file, **arrays, **{_SETTINGS: np.array(text)})


def read(given: str) -> Saved:
    """Returns the model of the package of that name, or of that file. Raises UserError."""
    path = FOLDER / f"{given}.npz" if given in NAMES else user_path(given, "--pretrained")
    if not path.is_file():
        known = ", ".join(NAMES)
        raise UserError(f"--pretrained={given} is neither a file nor a model here; known: {known}")
    try:
        with np.load(path) as archive:
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
        said = json.loads(str(arrays.pop(_SETTINGS)))
        config = ConfigDict(filled(defaults.get_config().to_dict(), said["config"]))
        leaves = {name: array.astype(np.float32) for name, array in arrays.items()}
        params = traverse_util.unflatten_dict(leaves, sep="/")
        return Saved(path, path.parent, int(said["step"]), config, dict(said["data"]), params)
    except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
        raise UserError(
            f"{path} is damaged, or no model's file that experiments.export wrote ({reason(error)})"
        ) from error


def fit(params: Params, expected: Params, whose: str) -> Params:
    """Returns `params` if they have the shapes of `expected`. Raises UserError for the first."""
    found, wanted = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
         for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, expected)
    )  # fmt: skip
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{whose} parameters are another model's: {name} is {found.get(name, 'missing')}, "
                f"here {wanted.get(name, 'missing')}; --config.model must be as theirs"
            )
    return params
