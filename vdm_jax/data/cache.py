"""Decoded data sets on disk: a folder of .npy files to memory-map, and `meta.json` beside them.

A folder appears under its final name only once it is whole: it is written under a temporary
name, flushed to disk and renamed. What a killed run leaves behind has a temporary name and is
never read. `meta.json` holds each file's size, time of change and sha256, so that a start-up
reads no pixels: only a file whose time differs is hashed again, and one whose content differs
is an error.

The format's number is part of a folder's name: a copy of an older version is left alone (that
version may still be in use), not read, and made anew beside it.
"""

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.data import seen
from vdm_jax.data.bounded import UNREADABLE
from vdm_jax.data.errors import DataError
from vdm_jax.data.images import ImageData, fingerprint
from vdm_jax.data.stream import Part, save
from vdm_jax.errors import reason, user_path

_FORMAT = 2  # 1 had no class labels
_META = "meta.json"
_ABANDONED_AFTER_S = 24 * 3600.0
_PARTS = ("train", "test")
_log = logging.getLogger(__name__)


def default_data_dir() -> Path:
    """Returns $VDM_JAX_DATA, or ~/.cache/vdm_jax where that isn't set."""
    return user_path(os.environ.get("VDM_JAX_DATA") or "~/.cache/vdm_jax", "$VDM_JAX_DATA")


def decoded(data_dir: Path, key: str) -> Path:
    """Returns the folder for the decoded copy of the content that `key` stands for."""
    return data_dir / "decoded" / f"{key}-v{_FORMAT}"


def write(
    folder: Path,
    train: Part,
    test: Part,
    levels: int,
    source: Mapping[str, np.ndarray] | None = None,
    labels: Mapping[str, np.ndarray] | None = None,
    label_names: Sequence[str] = (),
) -> None:
    """Writes a decoded data set as `folder`, all or nothing.

    A `Stream` is decoded while it is written; its class labels, if it brings any, stand for
    `labels`. Where another process has finished the same folder meanwhile, its copy is kept.

    Raises:
      OSError: the disk is full or `folder` can't be written.
      DataError: from a stream.
    """
    partial = folder.with_name(f"{folder.name}{seen.MARK}{uuid.uuid4().hex[:8]}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    _check_room(folder.parent, sum(math.prod(part.shape) for part in (train, test)))
    try:
        partial.mkdir()
        arrays = {f"{part}_source": array for part, array in (source or {}).items()}
        arrays |= {
            f"{part}_label": array.astype(np.int32) for part, array in (labels or {}).items()
        }
        for part, images in zip(_PARTS, (train, test), strict=True):
            streamed = _save(partial / f"{part}.npy", images)
            arrays |= {} if streamed is None else {f"{part}_label": streamed}
        for name, array in arrays.items():
            _save(partial / f"{name}.npy", array)
        _describe(partial, levels, label_names, [*_PARTS, *arrays])
        _sync_folder(partial)
        _rename(partial, folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _mention_older(folder)


def _check_room(folder: Path, wanted: int) -> None:
    """Raises OSError unless there is room for `wanted` bytes: before others' room is used up."""
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise OSError(
            errno.ENOSPC, f"it takes {wanted:,} bytes of disk, of which {free:,} are free"
        )


def _describe(folder: Path, levels: int, label_names: Sequence[str], names: list[str]) -> None:
    meta = {
        "format": _FORMAT,
        "levels": levels,
        "fingerprint": fingerprint(_map(folder, "train"), _map(folder, "test"), levels),
        "label_names": list(label_names),
        "files": {f"{name}.npy": seen.file_state(folder / f"{name}.npy") for name in names},
    }
    with _durable(folder / _META) as file:
        file.write(json.dumps(meta, indent=1).encode())


def read(folder: Path, name: str) -> ImageData:
    """Memory-maps the data set that `write` left as `folder`; `name` goes into the result.

    Raises:
      DataError: the folder is damaged: a file is missing, cut short or has other content.
    """
    try:
        meta = json.loads((folder / _META).read_bytes())
        if meta["format"] != _FORMAT:
            raise ValueError(f"written in format {meta['format']!r}, not {_FORMAT}")
        touched = [file for file, state in meta["files"].items() if _touched(folder / file, state)]
        data = ImageData(
            name,
            _map(folder, "train"),
            _map(folder, "test"),
            levels=meta["levels"],
            fingerprint=meta["fingerprint"],
            source=_small(folder, "source", meta) or None,
            labels=_small(folder, "label", meta) or None,
            label_names=tuple(meta["label_names"]),
        )
    except (*UNREADABLE, TypeError, AttributeError) as error:
        raise DataError(
            f"the decoded copy of {name} in {folder} is damaged ({reason(error)}); delete that "
            "folder and run again to rebuild it"
        ) from error
    if touched:  # same content, other time (say, copied): don't hash it at every start
        meta["files"] |= {file: seen.file_state(folder / file) for file in touched}
        seen.replace(folder / _META, meta)
    return data


def _save(path: Path, part: Part) -> np.ndarray | None:
    with _durable(path) as file:
        return save(file, part)


def _map(folder: Path, part: str) -> np.ndarray:
    array: np.ndarray = np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False)
    return array


def _small(folder: Path, kind: str, meta: Mapping[str, Any]) -> dict[str, np.ndarray]:
    names = {part: f"{part}_{kind}.npy" for part in _PARTS}
    return {
        part: np.load(folder / name, allow_pickle=False)
        for part, name in names.items()
        if name in meta["files"]
    }


def _touched(path: Path, state: Mapping[str, Any]) -> bool:
    """Whether the file's time has changed. Raises ValueError where its content has."""
    if seen.at_rest(path, state):
        return False
    size = path.stat().st_size
    if size != state["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes, not {state['bytes']}")
    if seen.sha256(path) != state["sha256"]:
        raise ValueError(f"the content of {path.name} has changed")
    return True


@contextlib.contextmanager
def _durable(path: Path) -> Iterator[Any]:
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(partial: Path, folder: Path) -> None:
    try:
        os.rename(partial, folder)
    except OSError:
        if not (folder / _META).exists():  # else another process was first: keep its copy
            raise


def _remove_abandoned(folder: Path) -> None:
    """Deletes day-old leftovers of killed writers; younger ones may still be written to."""
    for partial in folder.parent.glob(f"{folder.name}{seen.MARK}*"):
        with contextlib.suppress(FileNotFoundError):  # it was finished or removed meanwhile
            changed = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
            if time.time() - changed > _ABANDONED_AFTER_S:
                shutil.rmtree(partial, ignore_errors=True)


def _mention_older(folder: Path) -> None:
    older = folder.with_name(folder.name.removesuffix(f"-v{_FORMAT}"))  # format 1 had no suffix
    if older.exists():
        _log.warning("%s is of an older version and not read any more; delete it", older)
