"""The user's own images, from an .npz file."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vdm_jax.data import decoded_cache, file_states, npy
from vdm_jax.data.image_data import ImageData, as_images, check_range
from vdm_jax.errors import UserError, user_path

MOST_CLASSES = 100_000
_WANTED = "an .npz with integer arrays 'train' and 'test', [n, height, width(, channels)]"


def load_arrays(path: str | os.PathLike[str] | None, levels: int, data_dir: Path) -> ImageData:
    """Returns the images of an .npz file, memory-mapped from a decoded copy below `data_dir`.

    It has `train` and `test`, integers in [0, levels), [n, height, width] or
    [n, height, width, channels]; optionally `train_source` and `test_source`, group labels [n], and
    `train_label` with `test_label`, class labels [n]: integers from 0 on. `levels` is in 2..256.
    Raises UserError for no such file, no whole .npz, or arrays other than those.
    """
    if not path:
        raise UserError(f"arrays needs path=, the file to read: {_WANTED}")
    path = user_path(path, "path")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        raise UserError(f"{path} is {what}; path= must name {_WANTED}")
    state = file_states.unread([path])
    folder = decoded_cache.folder(data_dir, f"arrays-{state[:32]}-levels{levels}")
    if not folder.exists():
        extra = _read(path)
        if file_states.unread([path]) != state:
            raise UserError(f"{path} was changed while it was read; run again when it is at rest")
        train, test = (
            as_images(extra.pop(key), levels, f"array {key!r} in {path}")
            for key in ("train", "test")
        )
        if train.shape[1:] != test.shape[1:]:
            said = f"are {train.shape[1:]} but those of 'test' {test.shape[1:]}"
            raise UserError(f"images of 'train' in {path} {said}; give both the same shape")
        classes = _check_extra(extra, {"train": len(train), "test": len(test)}, path)
        decoded_cache.write(folder, train, test, levels, extra, [*map(str, range(classes))])
    return decoded_cache.read(folder, f"arrays:{path.name}")


def _read(path: Path) -> dict[str, np.ndarray]:
    kinds = ("train", "test", "train_source", "test_source", "train_label", "test_label")
    try:
        found, there = npy.members(path, kinds)
    except ValueError as error:
        raise UserError(f"{path}: {error}; wanted {_WANTED}, plain and undamaged") from error
    for key in ("train", "test"):
        if key not in found:
            known = ", ".join(there) or "none"
            raise UserError(f"{path} has no array {key!r}; found {known}; wanted {_WANTED}")
    return found


def _check_extra(extra: Mapping[str, np.ndarray], counts: Mapping[str, int], path: Path) -> int:
    """Returns the number of classes. Raises UserError unless each image has one label."""
    for key, values in extra.items():
        part = key.split("_")[0]
        if values.shape != (counts[part],):
            wanted = f"a label for each image of {part!r}, ({counts[part]},)"
            raise UserError(f"'{key}' in {path} has shape {values.shape}; wanted {wanted}")
    labels = {key: values for key, values in extra.items() if key.endswith("_label")}
    if len(labels) == 1:
        raise UserError(f"{path} has but one of 'train_label' and 'test_label'; give both or none")
    for key, values in labels.items():
        hint = "number the classes from 0 on (np.unique(labels, return_inverse=True))"
        check_range(values, MOST_CLASSES, f"'{key}' in {path}", hint)
    return max((1 + int(values.max()) for values in labels.values()), default=0)
