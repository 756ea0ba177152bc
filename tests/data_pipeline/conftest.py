"""Fixtures: small archives in the layouts of the real ones, and a check of error messages."""

import contextlib
import dataclasses
import functools
import gzip
import http.server
import struct
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from small_archives import add_member, register

from vdm_jax.data import ImageData, file_states
from vdm_jax.errors import UserError

COUNTS = {"train": 25, "test": 7}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Files that were just written are taken as they are."""
    monkeypatch.setattr(file_states, "AT_REST_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def one_clear_line():
    """A context manager: a UserError of one line that matches, in under ten seconds."""

    @contextlib.contextmanager
    def check(match: str):
        begun = time.monotonic()
        with pytest.raises(UserError, match=match) as caught:
            yield
        assert time.monotonic() - begun < 10
        assert "\n" not in str(caught.value)

    return check


@pytest.fixture
def serve():
    """Serves a folder on this machine; gives the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with contextlib.ExitStack() as stack:

        def start(folder: Path) -> str:
            handler = functools.partial(Quiet, directory=str(folder))
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/"

        yield start


@dataclasses.dataclass
class Synthetic:
    """A published dataset in small: its true pixels, and the folder of its archives."""

    name: str
    images: dict[str, np.ndarray]
    manual_dir: Path

    @property
    def archives(self) -> list[Path]:
        return sorted(self.manual_dir.iterdir())

    def check(self, data: ImageData) -> None:
        """Asserts that `data` holds just these images, in the order of tensorflow-datasets."""
        from tensorflow_datasets.core.hashing import Hasher

        for part, images in self.images.items():
            order = sorted(range(len(images)), key=Hasher(part).hash_key)
            np.testing.assert_array_equal(getattr(data, part), images[order])
            np.testing.assert_array_equal(data.labels[part], np.array(order) % 10)

    def register(self, monkeypatch, site: str = "http://127.0.0.1:9/") -> None:
        """Has the sizes and checksums of the small archives taken for the published ones."""
        register(monkeypatch, self.archives, site)


def _write_cifar10(path: Path, images: dict[str, np.ndarray]) -> None:
    """Writes a tar.gz in the layout of cifar-10-binary.tar.gz; image n has the label n % 10."""
    folder = "cifar-10-batches-bin/"
    numbers = np.array_split(np.arange(len(images["train"])), 5)
    parts = {f"data_batch_{i + 1}.bin": ("train", some) for i, some in enumerate(numbers)}
    parts["test_batch.bin"] = ("test", np.arange(len(images["test"])))
    with tarfile.open(path, "w:gz") as tar:
        add_member(tar, folder + "batches.meta.txt", b"".join(b"label%d\n" % i for i in range(10)))
        add_member(tar, folder + "readme.html", b"<html></html>")
        for name, (part, some) in parts.items():
            pixels = images[part][some].transpose(0, 3, 1, 2).reshape(len(some), -1)
            rows = np.concatenate([np.uint8(some % 10)[:, None], pixels], 1)
            add_member(tar, folder + name, rows.tobytes())


def _write_mnist(folder: Path, images: dict[str, np.ndarray]) -> None:
    """Writes four gzipped IDX files as MNIST has them; image n has the label n % 10."""
    for part, prefix in (("train", "train"), ("test", "t10k")):
        shape = images[part].shape[:3]
        content = struct.pack(">4I", 2051, *shape) + images[part].tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
        labels = bytes(i % 10 for i in range(shape[0]))
        content = struct.pack(">2I", 2049, shape[0]) + labels
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))


def _synthetic(name: str, tmp_path: Path, shape: tuple[int, int, int]) -> Synthetic:
    rng = np.random.default_rng(0)
    images = {k: rng.integers(0, 256, (n, *shape), dtype=np.uint8) for k, n in COUNTS.items()}
    (tmp_path / "manual").mkdir()
    return Synthetic(name, images, tmp_path / "manual")


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> Synthetic:
    """A CIFAR-10 of 25 + 7 images; its archive lies in `manual_dir`."""
    small = _synthetic("cifar10", tmp_path, (32, 32, 3))
    _write_cifar10(small.manual_dir / "cifar-10-binary.tar.gz", small.images)
    small.register(monkeypatch)
    return small


@pytest.fixture
def mnist(tmp_path, monkeypatch) -> Synthetic:
    """An MNIST of 25 + 7 images; its archives lie in `manual_dir`."""
    small = _synthetic("mnist", tmp_path, (28, 28, 1))
    _write_mnist(small.manual_dir, small.images)
    small.register(monkeypatch)
    return small
