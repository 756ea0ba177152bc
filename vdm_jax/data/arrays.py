"""The user's own images, from an .npz file.

Each array is told from its header, which must agree with the size that the archive announces, and
then decoded a piece at a time into the copy on disk: no file, however it is packed, takes memory.
"""

import contextlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vdm_jax.data import bounded, cache, seen
from vdm_jax.data.errors import DataError
from vdm_jax.data.images import ImageData
from vdm_jax.data.stream import Block, Stream
from vdm_jax.errors import reason, user_path

MOST_CLASSES = 100_000
MOST_AT_ONCE = 1 << 32  # bytes: of labels, of one image, of images that aren't stored row by row
_PIECE = 1 << 24
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
    path = user_path(path, "path")
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
        with _opened(path) as archive:
            _write(folder, archive, path, levels)
    return cache.read(folder, name)


def _write(folder: Path, archive: zipfile.ZipFile, path: Path, levels: int) -> None:
    there = [name.removesuffix(".npy") for name in archive.namelist()]
    missing = [key for key in ("train", "test") if key not in there]
    if missing:
        raise DataError(
            f"{path} has no array {missing[0]!r}; found {', '.join(there) or 'none'}; "
            f"wanted {_WANTED}"
        )
    parts = {key: _images(archive, key, levels, path) for key in ("train", "test")}
    train, test = parts["train"], parts["test"]
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"images of 'train' in {path} are {train.shape[1:]} but those of 'test' "
            f"{test.shape[1:]} (height, width, channels); give both parts the same shape"
        )
    source = _per_image(archive, "source", parts, path)
    labels = _per_image(archive, "label", parts, path)
    _check_classes(labels, path)
    count = 1 + max((int(part.max()) for part in labels.values()), default=-1)
    names = [str(label) for label in range(count)]
    cache.write(folder, train, test, levels, source, labels, names)


def _per_image(
    archive: zipfile.ZipFile, kind: str, parts: Mapping[str, Stream], path: Path
) -> dict[str, np.ndarray]:
    """Returns the arrays "train_KIND" and "test_KIND" that are there, one value per image."""
    found = {}
    for part, images in parts.items():
        key = f"{part}_{kind}"
        if f"{key}.npy" not in archive.namelist():
            continue
        with _readable(key, path):
            member = bounded.member(archive, key)
        if member.shape != images.shape[:1]:
            raise DataError(
                f"'{key}' in {path} has shape {member.shape}; wanted one label for each "
                f"image of {part!r}, ({images.shape[0]},)"
            )
        with _readable(key, path):
            found[part] = member.array(MOST_AT_ONCE)
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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is no .npz file, or one cut short (it isn't a whole zip archive); wanted "
            f"{_WANTED}, as numpy.savez writes it"
        )
    try:
        archive = zipfile.ZipFile(path)
    except bounded.UNREADABLE as error:
        raise DataError(f"{path} can't be read ({reason(error)}); wanted {_WANTED}") from error
    with archive:
        yield archive


@contextlib.contextmanager
def _readable(key: str, path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except bounded.UNREADABLE as error:
        raise DataError(
            f"array {key!r} in {path} can't be read ({reason(error)}); wanted plain numbers in an "
            "undamaged file: write it anew with numpy.savez"
        ) from error


def _images(archive: zipfile.ZipFile, key: str, levels: int, path: Path) -> Stream:
    """Returns an array's images as uint8 [n, height, width, channels] with values in [0, levels).

    Dtype and shape are checked now, the values when the stream is read.
    """
    with _readable(key, path):
        member = bounded.member(archive, key)
    if member.dtype.kind not in "ui":
        raise DataError(
            f"array {key!r} holds {member.dtype} values; wanted integers in [0, {levels}): "
            f"quantise them first (x in [0, 1]: (x * {levels - 1}).round().astype('uint8'))"
        )
    if len(member.shape) not in (3, 4) or 0 in member.shape:
        raise DataError(
            f"array {key!r} has shape {member.shape}; wanted at least one image, as "
            "[n, height, width] or [n, height, width, channels]"
        )
    height, width, *channels = member.shape[1:]
    shape = (member.shape[0], height, width, channels[0] if channels else 1)

    def blocks() -> Iterator[Block]:
        with _readable(key, path):
            for block in member.rows(_PIECE, MOST_AT_ONCE):
                yield _pixels(block, key, levels).reshape(-1, *shape[1:]), None

    return Stream(f"{path.name}, {key}", shape, blocks())


def _pixels(array: np.ndarray, key: str, levels: int) -> np.ndarray:
    for extreme in (int(array.min()), int(array.max())):
        if not 0 <= extreme < levels:
            raise DataError(
                f"array {key!r} holds the value {extreme}, outside [0, {levels}); set levels= to "
                "the number of pixel values, or rescale the images"
            )
    return array.astype(np.uint8)
