"""The two pairs of small ImageNets, from archives in the original layout to mapped pixels."""

import dataclasses
import io
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from small_archives import add_member, register

from vdm_jax.data import archives, load
from vdm_jax.data.cifar10_mnist import PUBLISHED
from vdm_jax.data.imagenet import IMAGENET, png_blocks

COUNTS = {"train": 23, "test": 6}
OLD, NEW = "downsampled_imagenet/32x32", "imagenet_resized/64x64"


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@dataclasses.dataclass
class Small:
    """A small dataset with its true pixels and labels, and the folder of its archives."""

    name: str
    folder: Path
    data_dir: Path
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    def load(self, **kwargs):
        return load(self.name, data_dir=self.data_dir, manual_dir=self.folder, **kwargs)

    def register(self, monkeypatch, site: str = "http://127.0.0.1:9/") -> None:
        """Has the files that lie in the folder taken for the published ones."""
        register(monkeypatch, self.folder.iterdir(), site)

    def check(self, data) -> None:
        for part, images in self.images.items():
            np.testing.assert_array_equal(getattr(data, part), images)

    def write_tar(self, part: str, stem: str) -> None:
        with tarfile.open(self.folder / f"{stem}.tar", "w") as tar:
            top = tarfile.TarInfo(stem)
            top.type = tarfile.DIRTYPE
            tar.addfile(top)
            for i, image in enumerate(self.images[part]):
                add_member(tar, f"{stem}/{i:07d}.png", _png(image))

    def write_zip(self, part: str, file: str, members: dict[str, slice]) -> None:
        with zipfile.ZipFile(self.folder / file, "w") as outer:
            for name, rows in members.items():
                images = self.images[part][rows]
                data = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
                buffer = io.BytesIO()
                np.savez(buffer, data=data, labels=self.labels[part][rows] + 1, mean=np.zeros(3))
                outer.writestr(name, buffer.getvalue())


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Returns a small ImageNet, its archives written."""

    def small(name: str) -> Small:
        rng = np.random.default_rng(1)
        shape = (int(name[-2:]), int(name[-2:]), 3)
        images = {k: rng.integers(0, 256, (n, *shape), dtype=np.uint8) for k, n in COUNTS.items()}
        labels = {k: rng.integers(0, 1000, n) for k, n in COUNTS.items()}
        labels["train"][:2] = 0, 999
        labels["test"][:] = labels["train"][5:11]  # a class that can't be trained is refused
        (tmp_path / "manual").mkdir()
        made = Small(name, tmp_path / "manual", tmp_path / "d", images, labels)
        if name == OLD:
            made.write_tar("train", "train_32x32")
            made.write_tar("test", "valid_32x32")
        else:
            # In alphabetical order 10 comes before 2: that of the numbers is the documented one.
            rows = {"batch_10.npz": slice(9, 12), "batch_2.npz": slice(9)}
            made.write_zip("train", "Imagenet64_train_part1_npz.zip", rows)
            made.write_zip("train", "Imagenet64_train_part2_npz.zip", {"b_1.npz": slice(12, 23)})
            made.write_zip("test", "Imagenet64_val_npz.zip", {"val_data.npz": slice(None)})
        made.register(monkeypatch)
        return made

    return small


def test_the_tars_give_their_images_in_their_order(make, capfd, one_clear_line):
    old = make(OLD)
    data = old.load()
    old.check(data)
    assert isinstance(data.train, np.memmap)
    assert (data.name, data.levels, data.labels, data.num_classes) == (OLD, 256, None, 0)
    assert capfd.readouterr() == ("", f"vdm_jax: preparing {OLD} in {old.data_dir} (once)\n")
    for path in old.folder.iterdir():
        path.unlink()
    old.check(old.load())  # the decoded copy suffices
    with one_clear_line(f"{OLD} has no class labels; leave class_labels out"):
        old.load(class_labels=True)


def test_the_zips_give_their_images_and_labels_by_number_and_can_be_downloaded(
    make, serve, tmp_path, monkeypatch
):
    new = make(NEW)
    data = new.load(class_labels=True)
    new.check(data)
    for part, labels in new.labels.items():
        np.testing.assert_array_equal(data.labels[part], labels)
    assert data.num_classes == len(set(data.label_names)) == 1000
    assert (data.label_names[0], data.label_names[1]) == ("n02119789", "n02100735")
    new.register(monkeypatch, serve(new.folder))
    new.check(load(NEW, data_dir=tmp_path / "e", manual_dir=tmp_path / "none"))
    assert len(list((tmp_path / "e" / "downloads").rglob("*.zip"))) == 3  # kept


def test_the_old_archives_must_be_there(make, one_clear_line, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "get", lambda *_, **__: pytest.fail("asked the network"))
    with one_clear_line(
        f"{OLD} is not on this machine and can't be downloaded, as image-net.org doesn't offer it "
        "any more; put train_32x32.tar .4,113,018,880 bytes, sha256 244a323d[0-9a-f]{56}., "
        "valid_32x32.tar .161,474,560 bytes, sha256 862e5594[0-9a-f]{56}. into manual_dir=.*none, "
        "or 'imagenet_resized/32x32' can be downloaded, but is another dataset with other bits"
    ):
        load(OLD, data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    assert not (tmp_path / "d").exists()
    old = make(OLD)
    path = old.folder / "valid_32x32.tar"
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    with one_clear_line(f"{path} has a wrong checksum: .* get it anew, or delete it"):
        old.load()
    path.unlink()
    with one_clear_line("; put valid_32x32.tar .[0-9,]+ bytes"):  # and no other
        old.load()


def test_a_tar_is_never_held_whole(tmp_path):
    path = tmp_path / "many.tar"
    content = _png(np.zeros((32, 32, 3), np.uint8))
    with tarfile.open(path, "w") as tar:
        for i in range(2000):
            add_member(tar, f"train_32x32/{i:07d}.png", content)
    blocks = png_blocks(path)
    for _ in range(10):
        next(blocks)
    tracemalloc.start()
    try:
        assert sum(len(images) for images, _ in blocks) == 1990
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000  # neither the pixels (6 MB) nor the members' headers (some MB)


def test_of_each_size_all_archives_are_known_and_copies_of_before_stay_good():
    import tensorflow_datasets as tfds

    tables = {name: spec.files for name, spec in PUBLISHED.items()}
    tables |= {name: (*spec.train, *spec.test) for name, spec in IMAGENET.items()}
    for name, files in tables.items():
        kind, _, size = name.partition("/")
        assert [archive.filename for archive in archives.known(kind, files, True)] == [*files]
        every = tfds.builder_cls(kind).url_infos
        assert len(files) == sum(size.split("x")[0] in url.split("/")[-1] for url in every)
    (cifar10,) = archives.known("cifar10", tables["cifar10"], True)
    assert cifar10.url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert (cifar10.size, cifar10.sha256[:16]) == (170_052_171, "c4a38c50a1bc5f3a")
