"""Fixtures: small archives in the layouts of the real ones, and a check of error messages."""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import struct
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from vdm_jax.data import DataError, ImageData, published

COUNTS = {"train": 25, "test": 7}


@pytest.fixture
def one_clear_line():
    """A context manager: a DataError of one line that matches, in under ten seconds."""

    @contextlib.contextmanager
    def check(match: str):
        begun = time.monotonic()
        with pytest.raises(DataError, match=match) as caught:
            yield
        assert time.monotonic() - begun < 10
        assert "\n" not in str(caught.value)

    return check


def _sorted(images: np.ndarray) -> list[bytes]:
    return sorted(image.tobytes() for image in np.asarray(images))


@dataclasses.dataclass
class Synthetic:
    """A published data set in small: its true pixels, and the folder of its archives."""

    name: str
    images: dict[str, np.ndarray]
    manual_dir: Path

    @property
    def archives(self) -> list[Path]:
        return sorted(self.manual_dir.iterdir())

    def check(self, data: ImageData) -> None:
        """Asserts that `data` holds just these images, each part in whatever order."""
        for split, images in self.images.items():
            assert _sorted(getattr(data, split)) == _sorted(images)

    def register(self, monkeypatch, url: str = "http://127.0.0.1:9/") -> None:
        """Puts the sizes, checksums and counts of the small archives into the table."""
        archives = tuple(
            published.Archive(
                url + path.name,
                path.stat().st_size,
                hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            for path in self.archives
        )
        counts = {split: len(images) for split, images in self.images.items()}
        small = dataclasses.replace(
            published.PUBLISHED[self.name], counts=counts, archives=archives
        )
        monkeypatch.setitem(published.PUBLISHED, self.name, small)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_cifar10(path: Path, images: dict[str, np.ndarray], without: str = "", cut: int = 0):
    """Writes a tar.gz in the layout of cifar-10-binary.tar.gz, with unsafe members added."""
    folder = "cifar-10-batches-bin/"
    parts = np.array_split(images["train"], 5)
    files = {f"data_batch_{i + 1}.bin": part for i, part in enumerate(parts)}
    files["test_batch.bin"] = images["test"]
    with tarfile.open(path, "w:gz") as tar:
        directory = tarfile.TarInfo(folder.rstrip("/"))
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        _add(tar, folder + "batches.meta.txt", b"\n".join(b"label%d" % i for i in range(10)))
        _add(tar, folder + "readme.html", b"<html></html>")
        _add(tar, "../escaped.bin", b"this must never be written anywhere")
        link = tarfile.TarInfo("data_batch_9.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        start = {f"data_batch_{i + 1}.bin": sum(map(len, parts[:i])) for i in range(5)}
        for name, part in files.items():
            numbers = start.get(name, 0) + np.arange(len(part))
            labels = np.uint8(numbers % 10)[:, None]
            rows = np.concatenate([labels, part.transpose(0, 3, 1, 2).reshape(len(part), -1)], 1)
            content = rows.tobytes()
            if name != without:
                _add(tar, folder + name, content[: len(content) - cut])


def write_mnist(folder: Path, images: dict[str, np.ndarray]) -> None:
    """Writes four gzipped IDX files as MNIST has them."""
    for split, prefix in (("train", "train"), ("test", "t10k")):
        part = images[split]
        header = struct.pack(">4I", 2051, *part.shape[:3])
        path = folder / f"{prefix}-images-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(header + part.tobytes()))
        labels = bytes(i % 10 for i in range(len(part)))
        path = folder / f"{prefix}-labels-idx1-ubyte.gz"
        path.write_bytes(gzip.compress(struct.pack(">2I", 2049, len(part)) + labels))


def _synthetic(name: str, tmp_path: Path, monkeypatch, shape: tuple[int, int, int]) -> Synthetic:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rng = np.random.default_rng(0)
    images = {k: rng.integers(0, 256, (n, *shape), dtype=np.uint8) for k, n in COUNTS.items()}
    (tmp_path / "manual").mkdir()
    return Synthetic(name, images, tmp_path / "manual")


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> Synthetic:
    """A CIFAR-10 of 25 + 7 images; its archive lies in `manual_dir`."""
    small = _synthetic("cifar10", tmp_path, monkeypatch, (32, 32, 3))
    write_cifar10(small.manual_dir / "cifar-10-binary.tar.gz", small.images)
    small.register(monkeypatch)
    return small


@pytest.fixture
def cifar10_writer():
    return write_cifar10


@pytest.fixture
def mnist(tmp_path, monkeypatch) -> Synthetic:
    """An MNIST of 25 + 7 images; its archives lie in `manual_dir`."""
    small = _synthetic("mnist", tmp_path, monkeypatch, (28, 28, 1))
    write_mnist(small.manual_dir, small.images)
    small.register(monkeypatch)
    return small
