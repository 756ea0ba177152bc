"""Decoded datasets on disk: a folder of .npy files to memory-map, and `meta.json` beside them.

A folder gets its name once it is whole and on the disk. `meta.json` holds each file's size, time of
change and sha256, so that a start-up reads no pixels: only a file whose time differs is hashed
again. The format's number is part of a folder's name: a copy of another version is left alone.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from vdm_jax import files
from vdm_jax.data import file_states, npy
from vdm_jax.data.image_data import ImageData, fingerprint
from vdm_jax.errors import UserError, reason

_FORMAT = 2
_META = "meta.json"
_PARTS = ("train", "test")

# Some images, uint8 [k, height, width, channels], and where there are any their class labels [k] as
# "label" and their groups [k] as "source".
Block = tuple[np.ndarray, Mapping[str, np.ndarray]]


class Stream(NamedTuple):
    """Images that come one block after another: decoded while written, and never held whole."""

    what: str  # its name in errors and the progress line, e.g. "imagenet_resized/32x32, train"
    total: int | None  # of images, for the progress; None if it isn't known
    shape: tuple[int, int, int]  # height, width, channels
    blocks: Iterable[Block]


Part = np.ndarray | Stream


def folder(data_dir: Path, key: str) -> Path:
    """Returns the folder for the decoded copy of the content that `key` stands for."""
    return data_dir / "decoded" / f"{key}-v{_FORMAT}"


def progress() -> Progress:
    """Returns a progress bar on stderr, which shows on a terminal only."""
    return Progress(console=Console(stderr=True), disable=not sys.stderr.isatty())


def write(
    folder: Path,
    train: Part,
    test: Part,
    levels: int,
    extra: Mapping[str, np.ndarray] | None = None,
    label_names: Sequence[str] = (),
) -> None:
    """Writes a decoded dataset as `folder`, all or nothing.

    `extra` may have group labels, "train_source" and "test_source", class labels, "train_label"
    and "test_label", which a `Stream` may bring itself, and conditions, "train_condition" and
    "test_condition". Where another process writes the same folder, its copy is waited for. Raises
    OSError where `folder` can't be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process has left
        try:
            partial.mkdir()
            arrays = dict(extra or {})
            for part, images in zip(_PARTS, (train, test), strict=True):
                streamed = _save(partial / f"{part}.npy", images)
                arrays |= {f"{part}_{kind}": values for kind, values in streamed.items()}
            for name, array in arrays.items():
                kind = np.int32 if name.endswith("_label") else array.dtype
                _save(partial / f"{name}.npy", array.astype(kind))
            written = [f"{name}.npy" for name in (*_PARTS, *arrays)]
            meta = {"levels": levels, "label_names": list(label_names)}
            meta["fingerprint"] = fingerprint(*_parts(partial), levels)
            meta["files"] = {name: _state(partial / name) for name in written}
            files.write_json(partial / _META, meta)
            partial.rename(folder)
            files.sync(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _save(path: Path, part: Part) -> dict[str, np.ndarray]:
    """Writes `part` as .npy; returns the labels and groups that its blocks brought."""
    brought: dict[str, list[np.ndarray]] = {}
    with files.whole(path) as file:
        if isinstance(part, np.ndarray):
            np.save(file, part, allow_pickle=False)
            return {}
        header, done = {"descr": "|u1", "fortran_order": False}, 0
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (0, *part.shape)})
        with progress() as bar:
            task = bar.add_task(part.what, total=part.total)
            for images, extra in part.blocks:
                file.write(np.ascontiguousarray(images).data)
                for kind, values in extra.items():
                    brought.setdefault(kind, []).append(values)
                done += len(images)
                bar.advance(task, len(images))
        file.seek(0)  # NumPy leaves room in the header for any count
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (done, *part.shape)})
    return {kind: np.concatenate(values) for kind, values in brought.items()}


def read(folder: Path, name: str) -> ImageData:
    """Memory-maps the dataset that `write` left as `folder`; `name` goes into the result.

    Raises UserError where a file is missing, cut short or has other content.
    """
    try:
        meta = json.loads((folder / _META).read_bytes())
        found = {file: _state(folder / file, told) for file, told in meta["files"].items()}
        train, test = _parts(folder)
        kinds = ("source", "label", "condition")
        source, labels, conditions = (_per_image(folder, kind, found) for kind in kinds)
        data = ImageData(
            name, train, test, meta["levels"], meta["fingerprint"], source, labels,
            tuple(meta["label_names"]), conditions,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"the decoded copy of {name} in {folder} is damaged ({reason(error)})"
        raise UserError(f"{said}; delete that folder and run again to rebuild it") from error
    if found != meta["files"]:  # same content, other time (say, copied): don't hash it every time
        with contextlib.suppress(OSError):
            files.write_json(folder / _META, meta | {"files": found})
    return data


def _state(path: Path, told: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the file's size, time of change and sha256.

    It is not read if size and time are those of `told`, an earlier state. Raises ValueError where
    its content is not that of `told`.
    """
    stat = path.stat()
    found = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if told and stat.st_size != told["bytes"]:
        raise ValueError(f"{path.name} has {stat.st_size} bytes, not {told['bytes']}")
    digest = told["sha256"] if told and found.items() <= told.items() else file_states.sha256(path)
    if told and digest != told["sha256"]:
        raise ValueError(f"the content of {path.name} has changed")
    return found | {"sha256": digest}


def _parts(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return npy.mapped(folder / "train.npy"), npy.mapped(folder / "test.npy")


def _per_image(folder: Path, kind: str, there: Iterable[str]) -> dict[str, np.ndarray] | None:
    names = {part: f"{part}_{kind}.npy" for part in _PARTS}
    found = {part: npy.mapped(folder / name) for part, name in names.items() if name in there}
    return found or None
