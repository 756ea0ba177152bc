"""The user's own images, from an .npz file."""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vdm_jax.data import cache, seen
from vdm_jax.data.errors import DataError, reason
from vdm_jax.data.images import ImageData

MOST_CLASSES = 100_000
_WANTED = "an .npz with integer arrays 'train' and 'test', [n, height, width(, channels)]"


def load_arrays(path: str | os.PathLike[str] | None, levels: int, data_dir: Path) -> ImageData:
    """Returns the images of an .npz file, memory-mapped from a decoded copy below `data_dir`.

    Args:
      path: a file with `train` and `test`, integers in [0, levels), [n, height, width] or
        [n, height, width, channels]; optionally `train_source` and `test_source`, group labels
        of shape [n], and `train_label` with `test_label`, class labels: integers of shape [n]
        from 0 on.
      levels: number of pixel values, 2..256.
      data_dir: where the decoded copy is kept, one for each content of the file.

    Raises:
      DataError: no such file, no whole .npz, or arrays other than those.
    """
    if not path:
        raise DataError(f"arrays needs path=, the file to read: {_WANTED}")
    path = Path(path).expanduser()
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        raise DataError(f"{path} is {what}; path= must name {_WANTED}")
    name = f"arrays:{path.name}"
    try:
        digest = seen.file_sha256(path, data_dir)
    except OSError as error:
        raise DataError(f"{path} can't be read: {reason(error)}; check its permissions") from error
    folder = cache.decoded(data_dir, f"arrays-{digest[:32]}-levels{levels}")
    if not folder.exists():
        train, test, source, labels = _read(path, levels)
        count = 1 + max((int(part.max()) for part in labels.values()), default=-1)
        names = [str(label) for label in range(count)]
        cache.write(folder, train, test, levels, source, labels, names)
    return cache.read(folder, name)


def _read(
    path: Path, levels: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns train, test, the group labels and the class labels."""
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is no .npz file, or one cut short (it isn't a whole zip archive); wanted "
            f"{_WANTED}, as numpy.savez writes it"
        )
    with _open(path) as file:
        missing = [key for key in ("train", "test") if key not in file.files]
        if missing:
            raise DataError(
                f"{path} has no array {missing[0]!r}; found {', '.join(file.files) or 'none'}; "
                f"wanted {_WANTED}"
            )
        parts = {key: _pixels(_member(file, key, path), key, levels) for key in ("train", "test")}
        source = _per_image(file, "source", parts, path)
        labels = _per_image(file, "label", parts, path)
    train, test = parts["train"], parts["test"]
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"images of 'train' in {path} are {train.shape[1:]} but those of 'test' "
            f"{test.shape[1:]} (height, width, channels); give both parts the same shape"
        )
    _check_classes(labels, path)
    return train, test, source, labels


def _per_image(
    file: np.lib.npyio.NpzFile, kind: str, parts: Mapping[str, np.ndarray], path: Path
) -> dict[str, np.ndarray]:
    """Returns the arrays "train_KIND" and "test_KIND" that are there, one value per image."""
    keys = {part: f"{part}_{kind}" for part in parts if f"{part}_{kind}" in file.files}
    found = {part: _member(file, key, path) for part, key in keys.items()}
    for part, values in found.items():
        if values.shape != (len(parts[part]),):
            raise DataError(
                f"'{keys[part]}' in {path} has shape {values.shape}; wanted one label for each "
                f"image of {part!r}, ({len(parts[part])},)"
            )
    return found


def _check_classes(labels: Mapping[str, np.ndarray], path: Path) -> None:
    if len(labels) == 1:
        (there,) = labels
        lacking = "test" if there == "train" else "train"
        raise DataError(
            f"{path} has '{there}_label' but no '{lacking}_label'; give class labels for both "
            "parts or for neither"
        )
    for part, values in labels.items():
        if values.dtype.kind not in "ui":
            raise DataError(
                f"'{part}_label' in {path} holds {values.dtype} values; wanted integers from 0 on: "
                "number the classes (np.unique(labels, return_inverse=True))"
            )
        for extreme in (int(values.min()), int(values.max())):
            if not 0 <= extreme < MOST_CLASSES:
                raise DataError(
                    f"'{part}_label' in {path} holds the value {extreme}, outside "
                    f"[0, {MOST_CLASSES}); number the classes 0, 1, 2, ..."
                )


def _open(path: Path) -> np.lib.npyio.NpzFile:
    try:
        file: np.lib.npyio.NpzFile = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} can't be read ({reason(error)}); wanted {_WANTED}") from error
    return file


def _member(file: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        return np.asarray(file[key])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"array {key!r} in {path} can't be read ({reason(error)}); wanted plain numbers in an "
            "undamaged file: write it anew with numpy.savez"
        ) from error


def _pixels(array: np.ndarray, key: str, levels: int) -> np.ndarray:
    """Returns `array` as uint8 [n, height, width, channels] with values in [0, levels)."""
    if array.dtype.kind not in "ui":
        raise DataError(
            f"array {key!r} holds {array.dtype} values; wanted integers in [0, {levels}): "
            f"quantise them first (x in [0, 1]: (x * {levels - 1}).round().astype('uint8'))"
        )
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise DataError(
            f"array {key!r} has shape {array.shape}; wanted at least one image, as "
            "[n, height, width] or [n, height, width, channels]"
        )
    for extreme in (int(array.min()), int(array.max())):
        if not 0 <= extreme < levels:
            raise DataError(
                f"array {key!r} holds the value {extreme}, outside [0, {levels}); set levels= to "
                "the number of pixel values, or rescale the images"
            )
    pixels = array.astype(np.uint8)
    return pixels if pixels.ndim == 4 else pixels[..., None]
