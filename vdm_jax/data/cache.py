"""Decoded data sets on disk: a folder of .npy files to memory-map, and `meta.json` beside them.

A folder appears under its final name only once it is whole: it is written under a temporary
name, flushed to disk and renamed. What a killed run leaves behind has a temporary name and is
never read. `meta.json` holds each file's size, time of change and sha256, so that a start-up
reads no pixels: only a file whose time differs is hashed again, and one whose content differs
is an error.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.data.errors import DataError, reason
from vdm_jax.data.images import ImageData, fingerprint

_FORMAT = 1
_META = "meta.json"
_MARK = ".partial-"
_ABANDONED_AFTER_S = 24 * 3600.0
_PARTS = ("train", "test")


def default_data_dir() -> Path:
    """Returns $VDM_JAX_DATA, or ~/.cache/vdm_jax where that isn't set."""
    return Path(os.environ.get("VDM_JAX_DATA") or "~/.cache/vdm_jax").expanduser()


def write(
    folder: Path,
    train: np.ndarray,
    test: np.ndarray,
    levels: int,
    source: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a decoded data set as `folder`, all or nothing.

    Where another process has finished the same folder meanwhile, its copy is kept.

    Raises:
      OSError: the disk is full or `folder` can't be written.
    """
    arrays = {"train": train, "test": test}
    arrays |= {f"{part}_source": labels for part, labels in (source or {}).items()}
    partial = folder.with_name(f"{folder.name}{_MARK}{uuid.uuid4().hex[:8]}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    try:
        partial.mkdir()
        for name, array in arrays.items():
            with _durable(partial / f"{name}.npy") as file:
                np.save(file, array, allow_pickle=False)
        meta = {
            "format": _FORMAT,
            "levels": levels,
            "fingerprint": fingerprint(train, test, levels),
            "files": {f"{name}.npy": _state(partial / f"{name}.npy") for name in arrays},
        }
        with _durable(partial / _META) as file:
            file.write(json.dumps(meta, indent=1).encode())
        _sync_folder(partial)
        _rename(partial, folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
        parts = {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in _PARTS}
        source = {
            part: np.load(folder / f"{part}_source.npy", allow_pickle=False)
            for part in _PARTS
            if f"{part}_source.npy" in meta["files"]
        }
        data = ImageData(
            name, parts["train"], parts["test"], meta["levels"], meta["fingerprint"], source or None
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(
            f"the decoded copy of {name} in {folder} is damaged ({reason(error)}); delete that "
            "folder and run again to rebuild it"
        ) from error
    if touched:  # same content, other time (say, copied): don't hash it at every start
        meta["files"] |= {file: _state(folder / file) for file in touched}
        _replace(folder / _META, meta)
    return data


def file_sha256(path: Path, data_dir: Path) -> str:
    """Returns the sha256 (hex) of a file; unchanged size and time of change spare the reading.

    What is remembered lies below `data_dir`, and only for files that were at rest (not changed
    within the last seconds), so that a change too quick for the clock isn't missed.
    """
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    note = data_dir / "decoded" / "seen" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_bytes())
        if _at_rest(path, known):
            return str(known["sha256"])
    before = path.stat()
    digest = _sha256(path)
    state = {"bytes": before.st_size, "mtime_ns": before.st_mtime_ns, "sha256": digest}
    if time.time() - before.st_mtime > 2.0 and _at_rest(path, state):
        _replace(note, state)
    return digest


def _state(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": _sha256(path)}


def _at_rest(path: Path, state: Mapping[str, Any]) -> bool:
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns) == (state["bytes"], state["mtime_ns"])


def _touched(path: Path, state: Mapping[str, Any]) -> bool:
    """Whether the file's time has changed. Raises ValueError where its content has."""
    if _at_rest(path, state):
        return False
    size = path.stat().st_size
    if size != state["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes, not {state['bytes']}")
    if _sha256(path) != state["sha256"]:
        raise ValueError(f"the content of {path.name} has changed")
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a small JSON file in one step. For notes that only save time: failure is harmless."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}{_MARK}{uuid.uuid4().hex[:8]}")
        partial.write_text(json.dumps(content, indent=1))
        os.replace(partial, path)


def _remove_abandoned(folder: Path) -> None:
    """Deletes day-old leftovers of killed writers; younger ones may still be written to."""
    for partial in folder.parent.glob(f"{folder.name}{_MARK}*"):
        if time.time() - partial.stat().st_mtime > _ABANDONED_AFTER_S:
            shutil.rmtree(partial, ignore_errors=True)
