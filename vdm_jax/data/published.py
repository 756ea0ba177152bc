"""The published data sets: their archives, and how to read the records out of these.

`PUBLISHED` is a plain table; nothing else in the package knows an address or a checksum. The
archives are only ever read as streams (nothing is unpacked to disk), and of each only the
expected members.
"""

import dataclasses
import gzip
import io
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vdm_jax.data import bounded
from vdm_jax.data.errors import DataError
from vdm_jax.errors import reason

Paths = Mapping[str, Path]  # the name of each archive -> where it lies on disk
Record = tuple[int, dict[str, Any]]
_MOST = 1 << 30  # bytes that an archive may unpack to; CIFAR-10 has 186 MB


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file as its publisher offers it: address, size in bytes and sha256 (hex).

    Where it isn't `offered` any more, the address is only the file's name and its origin.
    """

    url: str
    size: int
    sha256: str
    offered: bool = True

    @property
    def filename(self) -> str:
        """The file's own name, the last part of its address."""
        return PurePosixPath(urlsplit(self.url).path).name


@dataclasses.dataclass(frozen=True)
class Published:
    """A published data set.

    Attributes:
      name: what tensorflow-datasets calls it.
      event_shape: (height, width, channels).
      counts: number of images in "train" and in "test".
      archives: the files to be had.
      records: `records(split, paths)` yields (key, record) in the publisher's order, with the
        key and the fields of the tensorflow-datasets record and the image as PNG bytes.
      label_names: `label_names(paths)`, or None where the archive gives no names.
    """

    name: str
    event_shape: tuple[int, int, int]
    counts: Mapping[str, int]
    archives: tuple[Archive, ...]
    records: Callable[[str, Paths], Iterator[Record]]
    label_names: Callable[[Paths], list[str]] | None = None


def encode_png(image: np.ndarray) -> bytes:
    """Returns a uint8 image [height, width, 1 or 3] as the bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


# CIFAR-10, binary version: records of one label byte and 3 x 32 x 32 bytes, channels first.

_CIFAR10_FOLDER = "cifar-10-batches-bin"
_CIFAR10_FILES = {
    "train": tuple(f"{_CIFAR10_FOLDER}/data_batch_{i}.bin" for i in range(1, 6)),
    "test": (f"{_CIFAR10_FOLDER}/test_batch.bin",),
}
_CIFAR10_LABELS = f"{_CIFAR10_FOLDER}/batches.meta.txt"
_CIFAR10_RECORD = 1 + 3 * 32 * 32


def _cifar10_records(split: str, paths: Paths) -> Iterator[Record]:
    (path,) = paths.values()
    names = _CIFAR10_FILES[split]
    content = _tar_members(path, names)
    key = 0
    for name in names:
        if len(content[name]) % _CIFAR10_RECORD:
            raise DataError(
                f"{name} in {path} has {len(content[name])} bytes; wanted a multiple of "
                f"{_CIFAR10_RECORD}, the binary version of CIFAR-10"
            )
        rows = np.frombuffer(content[name], np.uint8).reshape(-1, _CIFAR10_RECORD)
        for row in rows:
            image = np.ascontiguousarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0))
            fields = {"id": f"{split}_{key:05d}", "image": encode_png(image), "label": int(row[0])}
            yield key, fields
            key += 1


def _cifar10_label_names(paths: Paths) -> list[str]:
    (path,) = paths.values()
    text = _tar_members(path, (_CIFAR10_LABELS,))[_CIFAR10_LABELS].decode()
    return [line for line in text.split("\n") if line]


def _tar_members(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Returns the content of the regular files `names` of a .tar.gz; all else is passed over."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(path, "rb") as unpacked:
            stream: Any = bounded.Limited(unpacked, _MOST)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    if not member.isfile() or member.name not in names:
                        continue
                    file = archive.extractfile(member)
                    if member.issparse() or file is None:
                        raise ValueError(f"{member.name} is no plain file")
                    found[member.name] = file.read()
    except bounded.UNREADABLE as error:
        raise DataError(f"{path} can't be read as .tar.gz: {reason(error)}; get it anew") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"{path} holds no {missing[0]}; wanted the original archive: get it anew")
    return found


# MNIST: gzipped IDX files, a big-endian header and then bytes.

_MNIST_PREFIX = {"train": "train", "test": "t10k"}
_IDX_IMAGES, _IDX_LABELS = 2051, 2049


def _mnist_records(split: str, paths: Paths) -> Iterator[Record]:
    prefix = _MNIST_PREFIX[split]
    images = _read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"], _IDX_IMAGES)
    labels = _read_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"], _IDX_LABELS)
    for key, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield key, {"image": encode_png(image[..., None]), "label": int(label)}


def _read_idx(path: Path, magic: int) -> np.ndarray:
    ndim = magic % 256
    try:
        with gzip.open(path, "rb") as file:
            content = bounded.Limited(file, _MOST).read()
        found, *shape = struct.unpack_from(f">{1 + ndim}I", content)
        if found != magic:
            raise ValueError(f"its magic number is {found}, not {magic}")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except bounded.UNREADABLE as error:
        raise DataError(f"{path} is no gzipped IDX file: {reason(error)}; get it anew") from error


_CIFAR10_SITE = "https://www.cs.toronto.edu/~kriz/"
_MNIST_SITE = "https://storage.googleapis.com/cvdf-datasets/mnist/"

PUBLISHED: dict[str, Published] = {
    "cifar10": Published(
        name="cifar10",
        event_shape=(32, 32, 3),
        counts={"train": 50_000, "test": 10_000},
        archives=(
            Archive(
                _CIFAR10_SITE + "cifar-10-binary.tar.gz",
                170_052_171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        records=_cifar10_records,
        label_names=_cifar10_label_names,
    ),
    "mnist": Published(
        name="mnist",
        event_shape=(28, 28, 1),
        counts={"train": 60_000, "test": 10_000},
        archives=(
            Archive(
                _MNIST_SITE + "train-images-idx3-ubyte.gz",
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            Archive(
                _MNIST_SITE + "train-labels-idx1-ubyte.gz",
                28_881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            Archive(
                _MNIST_SITE + "t10k-images-idx3-ubyte.gz",
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            Archive(
                _MNIST_SITE + "t10k-labels-idx1-ubyte.gz",
                4_542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
        records=_mnist_records,
    ),
}
