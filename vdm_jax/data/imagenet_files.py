"""The archives of downsampled ImageNet, read as streams: a part is never held whole."""

import contextlib
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from vdm_jax.data import picture
from vdm_jax.data.errors import DataError, reason
from vdm_jax.data.stream import Block

Shape = tuple[int, int, int]
_CLASSES = 1000
_ROWS = 1024


# downsampled_imagenet: a tar of PNG files.


def png_blocks(path: Path, event_shape: Shape, scratch: Path) -> Iterator[Block]:
    """Yields the PNG files of a tar one by one, in the order in which they stand there."""
    del scratch
    try:
        with tarfile.open(path, "r|") as archive:
            while (member := archive.next()) is not None:
                # It would keep the headers of a million files.
                archive.members.clear()  # type: ignore[attr-defined]
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and member.name.lower().endswith(".png"):
                    yield _png(file.read(), f"{member.name} in {path}", event_shape)[None], None
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path} can't be read as .tar: {reason(error)}; get it anew") from error


def _png(content: bytes, what: str, event_shape: Shape) -> np.ndarray:
    try:
        image = picture.pixels(picture.decode(content, event_shape[-1]))
    except ValueError as error:
        raise DataError(f"{what} {error}") from error
    if image.shape != event_shape:
        raise DataError(f"{what} is {image.shape}; wanted {event_shape}; get the archive anew")
    return image


# imagenet_resized: a zip of .npz files; "data" [n, 3 * height * width], channels first, and
# "labels" [n] from 1 on.


def npz_blocks(path: Path, event_shape: Shape, scratch: Path) -> Iterator[Block]:
    """Yields the rows of the .npz files in a zip, in the order of the files' numbers.

    An .npz is read from its end, which a stream within a zip can't do: each is copied to a
    nameless temporary file first (at most 1.6 GB), and gone when its rows are through.
    """
    with _readable(path, "as .zip"), zipfile.ZipFile(path) as outer:
        names = [name for name in outer.namelist() if _is_npz(name)]
        if not names:
            raise DataError(f"{path} holds no .npz file; wanted the original archive: get it anew")
        for name in sorted(names, key=_number):
            with tempfile.TemporaryFile(dir=scratch) as file:
                with outer.open(name) as packed:
                    shutil.copyfileobj(packed, file, 1 << 20)
                file.seek(0)
                with _readable(path, name), zipfile.ZipFile(file) as inner:
                    yield from _rows(inner, event_shape)


@contextlib.contextmanager
def _readable(path: Path, where: str) -> Iterator[None]:
    """Says which archive is broken, and where."""
    try:
        yield
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
        raise DataError(f"{path} can't be read, {where}: {reason(error)}; get it anew") from error


def _is_npz(name: str) -> bool:
    return name.endswith(".npz") and not PurePosixPath(name).name.startswith("._")


def _number(name: str) -> tuple[int, str]:
    """The last number in a member's name, "train_data_batch_10.npz": 10."""
    numbers = re.findall(r"\d+", PurePosixPath(name).name)
    return (int(numbers[-1]) if numbers else 0), name


def _rows(inner: zipfile.ZipFile, event_shape: Shape) -> Iterator[Block]:
    height, width, channels = event_shape
    with inner.open("labels.npy") as file:
        labels = np.lib.format.read_array(file, allow_pickle=False)
    if labels.dtype.kind not in "ui" or not 1 <= labels.min() <= labels.max() <= _CLASSES:
        raise ValueError(f"its labels are not integers in 1..{_CLASSES}")
    with inner.open("data.npy") as file:
        version = np.lib.format.read_magic(file)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_columns, dtype = header(file)
        if (shape, by_columns, dtype) != ((len(labels), height * width * channels), False, "u1"):
            raise ValueError(
                f"its data are {dtype} {shape}{' by columns' if by_columns else ''}; wanted uint8 "
                f"({len(labels)}, {height * width * channels})"
            )
        for start in range(0, len(labels), _ROWS):
            label = labels[start : start + _ROWS]
            content = file.read(len(label) * shape[1])
            rows = np.frombuffer(content, np.uint8).reshape(-1, channels, height, width)
            yield rows.transpose(0, 2, 3, 1), label - 1
