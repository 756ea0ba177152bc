"""CIFAR-10 and MNIST: their original archives, and the pixels and class labels in these.

Nothing of an archive is unpacked to disk.
"""

import functools
import gzip
import hashlib
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vdm_jax.data import archives, decoded_cache
from vdm_jax.data.image_data import ImageData

_Arrays = dict[str, np.ndarray]  # for "train" and "test"


class Published(NamedTuple):
    """The files of a dataset, and a function that reads them."""

    files: tuple[str, ...]
    # From the archives' paths to the images of each part, uint8 [n, height, width, channels], their
    # class labels [n], and the names of the classes.
    read: Callable[[Mapping[str, Path]], tuple[_Arrays, _Arrays, list[str]]]


def load_published(name: str, data_dir: Path, manual_dir: Path) -> ImageData:
    """Returns a dataset of the table `PUBLISHED`, as `archives.load` does.

    Both parts are in the order that tensorflow-datasets gives their records: that of the md5 of the
    part's name and the publisher's number. The fingerprints of all runs so far depend on it.
    """
    spec = PUBLISHED[name]

    def build(paths: Mapping[str, Path], folder: Path) -> None:
        images, labels, names = spec.read(paths)
        extra = {}
        for part in images:
            order = sorted(range(len(images[part])), key=functools.partial(_md5, part))
            images[part], extra[f"{part}_label"] = images[part][order], labels[part][order]
        decoded_cache.write(folder, images["train"], images["test"], 256, extra, names)

    return archives.load(name, spec.files, data_dir, manual_dir, build)


def _md5(part: str, number: int) -> bytes:
    return hashlib.md5(f"{part}{number}".encode(), usedforsecurity=False).digest()


def _read_cifar10(paths: Mapping[str, Path]) -> tuple[_Arrays, _Arrays, list[str]]:
    """Reads the binary version: records of one label byte and 3 x 32 x 32 bytes."""
    (path,) = paths.values()
    files = {}
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            if member.isfile():
                files[Path(member.name).name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    contents = {"train": b"".join(files[f"data_batch_{i}.bin"] for i in range(1, 6))}
    contents["test"] = files["test_batch.bin"]
    rows = {part: np.frombuffer(contents[part], np.uint8).reshape(-1, 3073) for part in contents}
    images = {p: rows[p][:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for p in rows}
    labels = {part: rows[part][:, 0] for part in rows}
    return images, labels, files["batches.meta.txt"].decode().split()


def _read_mnist(paths: Mapping[str, Path]) -> tuple[_Arrays, _Arrays, list[str]]:
    """Reads gzipped IDX files: big-endian magic number and shape, then bytes."""

    def array(file: str, axes: int) -> np.ndarray:
        content = gzip.decompress(paths[f"{file}-idx{axes}-ubyte.gz"].read_bytes())
        _, *shape = struct.unpack_from(f">{1 + axes}I", content)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)

    files = {"train": "train", "test": "t10k"}
    images = {part: array(f"{file}-images", 3)[..., None] for part, file in files.items()}
    labels = {part: array(f"{file}-labels", 1) for part, file in files.items()}
    return images, labels, [str(digit) for digit in range(10)]


_KINDS = ("images-idx3", "labels-idx1")
_MNIST = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in _KINDS)
PUBLISHED = {
    "cifar10": Published(("cifar-10-binary.tar.gz",), _read_cifar10),
    "mnist": Published(_MNIST, _read_mnist),
}
