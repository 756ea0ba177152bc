"""The archives of downsampled ImageNet, read as streams: a part is never held whole."""

import contextlib
import errno
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from vdm_jax.data import bounded, picture
from vdm_jax.data.errors import DataError
from vdm_jax.data.stream import Block
from vdm_jax.errors import reason

Shape = tuple[int, int, int]
_CLASSES = 1000
_PIECE = 1 << 24  # bytes
_MOST_PNG = 1 << 24  # bytes; those of the archives have some kilobytes
_MOST_NPZ = 1 << 32  # bytes; the largest has 1.6 GB
_MOST_LABELS = 1 << 24  # bytes; those of all images have 10 MB


# downsampled_imagenet: a tar of PNG files.


def png_blocks(path: Path, event_shape: Shape, scratch: Path) -> Iterator[Block]:
    """Yields the PNG files of a tar one by one, in the order in which they stand there."""
    del scratch
    try:
        with tarfile.open(path, "r|") as archive:
            while (member := archive.next()) is not None:
                # It would keep the headers of a million files.
                archive.members.clear()  # type: ignore[attr-defined]
                if not member.isfile() or not member.name.lower().endswith(".png"):
                    continue
                if member.size > _MOST_PNG:  # also one that is sparse, and so holds next to nothing
                    raise ValueError(f"{member.name} has {member.size:,} bytes, over {_MOST_PNG:,}")
                file = archive.extractfile(member)
                assert file is not None  # only of what isn't a file
                yield _png(file.read(), f"{member.name} in {path}", event_shape)[None], None
    except DataError:
        raise
    except bounded.UNREADABLE as error:
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
            bounded.check_packed(outer.getinfo(name))
            size = outer.getinfo(name).file_size
            if size > _MOST_NPZ:
                raise ValueError(f"{name} has {size:,} bytes, over {_MOST_NPZ:,}")
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
    except bounded.UNREADABLE as error:
        # A damaged zip sends its reader to before the file's start; a full disk is not its fault.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise DataError(f"{path} can't be read, {where}: {reason(error)}; get it anew") from error


def _is_npz(name: str) -> bool:
    return name.endswith(".npz") and not PurePosixPath(name).name.startswith("._")


def _number(name: str) -> tuple[int, str]:
    """The last number in a member's name, "train_data_batch_10.npz": 10."""
    numbers = re.findall(r"\d+", PurePosixPath(name).name)
    return (int(numbers[-1]) if numbers else 0), name


def _rows(inner: zipfile.ZipFile, event_shape: Shape) -> Iterator[Block]:
    height, width, channels = event_shape
    labels = bounded.member(inner, "labels").array(_MOST_LABELS)
    if labels.dtype.kind not in "ui" or not 1 <= labels.min() <= labels.max() <= _CLASSES:
        raise ValueError(f"its labels are not integers in 1..{_CLASSES}")
    data = bounded.member(inner, "data")
    wanted = (len(labels), height * width * channels)
    if (data.shape, data.by_columns, data.dtype) != (wanted, False, np.uint8):
        by_columns = " by columns" if data.by_columns else ""
        raise ValueError(
            f"its data are {data.dtype} {data.shape}{by_columns}; wanted uint8 {wanted}"
        )
    start = 0
    for block in data.rows(_PIECE, _PIECE):
        rows = block.reshape(-1, channels, height, width)
        yield rows.transpose(0, 2, 3, 1), labels[start : start + len(rows)] - 1
        start += len(rows)
