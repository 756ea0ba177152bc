"""The user's own images, from an .npz file."""

import os
from pathlib import Path

import numpy as np

from vdm_jax.data import decoded_cache, file_states, npy
from vdm_jax.data.image_data import ImageData, as_conditions, as_images, check_range
from vdm_jax.errors import UserError, reaching, user_path

MOST_CLASSES = 100_000
_EXTRA = ("_source", "_label", "_condition")
_WANTED = "an .npz with integer arrays 'train' and 'test', [n, height, width(, channels)]"


def load_arrays(path: str | os.PathLike[str] | None, levels: int, data_dir: Path) -> ImageData:
    """Returns the images of an .npz file, memory-mapped from a decoded copy below `data_dir`.

    It has `train` and `test`, integers in [0, levels), [n, height, width] or
    [n, height, width, channels]; optionally `train_source` and `test_source`, group labels [n];
    `train_label` with `test_label`, class labels [n]: integers from 0 on; and `train_condition`
    with `test_condition`, finite numbers [n, ...] to condition on. `levels` is in 2..256.
    Raises UserError for no such file, no whole .npz, or arrays other than those.
    """
    if not path:
        raise UserError(f"arrays needs path=, the file to read: {_WANTED}")
    path = user_path(path, "path")
    with reaching(path):
        if not path.is_file():
            what = "a folder" if path.is_dir() else "not there"
            raise UserError(f"{path} is {what}; path= must name {_WANTED}")
        state = file_states.unread([path])
    folder = decoded_cache.folder(data_dir, f"npz-{state[:32]}-levels{levels}")
    if not folder.exists():
        with reaching(path, "read"):
            extra = _read(path)
        if file_states.unread([path]) != state:
            raise UserError(f"{path} was changed while it was read; run again when it is at rest")
        train, test = (
            as_images(extra.pop(key), levels, f"array {key!r} in {path}")
            for key in ("train", "test")
        )
        extra, classes = _checked(extra, {"train": train, "test": test}, path)
        decoded_cache.write(folder, train, test, levels, extra, [*map(str, range(classes))])
    return decoded_cache.read(folder, f"arrays:{path.name}")


def _read(path: Path) -> dict[str, np.ndarray]:
    kinds = [f"{part}{kind}" for kind in ("", *_EXTRA) for part in ("train", "test")]
    try:
        found, there = npy.members(path, kinds)
    except ValueError as error:
        raise UserError(f"{path}: {error}; wanted {_WANTED}, plain and undamaged") from error
    for key in ("train", "test"):
        if key not in found:
            known = ", ".join(there) or "none"
            raise UserError(f"{path} has no array {key!r}; found {known}; wanted {_WANTED}")
    odd = [name for name in there if name not in kinds and name.startswith(("train", "test"))]
    if odd:  # a slip in a condition's name would train a model without it
        known = ", ".join(kinds)
        raise UserError(f"{path} has the array {odd[0]!r}, which means nothing; known are {known}")
    return found


def _checked(
    extra: dict[str, np.ndarray], images: dict[str, np.ndarray], path: Path
) -> tuple[dict[str, np.ndarray], int]:
    """Returns what else there is of each image, conditions as float32 [n, k], and the classes.

    Raises UserError unless each image has one of each, of one shape in both parts.
    """
    found, classes = dict(extra), 0
    for key, values in extra.items():
        part, kind = key.split("_")
        if values.shape[: 1 if kind == "condition" else None] != (count := len(images[part]),):
            wanted = f"a {kind} for each image of {part!r}, ({count},)"
            raise UserError(f"'{key}' in {path} has shape {values.shape}; wanted {wanted}")
        if kind == "label":
            hint = "number the classes from 0 on (np.unique(labels, return_inverse=True))"
            check_range(values, MOST_CLASSES, f"'{key}' in {path}", hint)
            classes = max(classes, 1 + int(values.max()))
        if kind == "condition":
            found[key] = as_conditions(values, f"'{key}' in {path}")
    every = extra | images
    for kind in ("", "_label", "_condition"):
        names = [name for name in (f"train{kind}", f"test{kind}") if name in every]
        shapes = {name: every[name].shape[1:] for name in names}
        if len(names) == 1 or len({*shapes.values()}) > 1:
            wanted = f"give 'train{kind}' and 'test{kind}' of one shape, or none"
            raise UserError(f"{path} has for each image {shapes}; {wanted}")
    return found, classes
