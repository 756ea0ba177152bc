"""The two pairs of small ImageNets, from archives in the original layout to mapped pixels."""

import dataclasses
import io
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vdm_jax.data import archives, file_states, imagenet, load
from vdm_jax.data.imagenet import IMAGENET, png_blocks

COUNTS = {"train": 23, "test": 6}
OLD, NEW = "downsampled_imagenet/32x32", "imagenet_resized/32x32"
NEW64 = "imagenet_resized/64x64"


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
        """Puts the sizes and checksums of the files that lie in the folder into the table."""

        def small(archive):
            path = self.folder / archive.filename
            told = {"size": path.stat().st_size, "sha256": file_states.sha256(path)}
            return dataclasses.replace(archive, url=site + path.name, **told)

        parts = IMAGENET[self.name].archives.items()
        found = {part: tuple(map(small, archives)) for part, archives in parts}
        monkeypatch.setitem(IMAGENET, self.name, imagenet.Imagenet(COUNTS, found))

    def check(self, data) -> None:
        for part, images in self.images.items():
            np.testing.assert_array_equal(getattr(data, part), images)

    def write_tar(self, part: str) -> None:
        stem = f"{'train' if part == 'train' else 'valid'}_{self.name.split('/')[1]}"
        with tarfile.open(self.folder / f"{stem}.tar", "w") as tar:
            top = tarfile.TarInfo(stem)
            top.type = tarfile.DIRTYPE
            tar.addfile(top)
            for i, image in enumerate(self.images[part]):
                content = _png(image)
                member = tarfile.TarInfo(f"{stem}/{i:07d}.png")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    def write_zip(self, file: str, members: dict[str, slice], part: str) -> None:
        with zipfile.ZipFile(self.folder / file, "w") as outer:
            for name, rows in members.items():
                data = self.images[part][rows].transpose(0, 3, 1, 2).reshape(-1, 3 * self._pixels)
                buffer = io.BytesIO()
                labels = self.labels[part][rows] + 1
                np.savez_compressed(buffer, data=data, labels=labels, mean=np.zeros(3))
                outer.writestr(name, buffer.getvalue())

    @property
    def _pixels(self) -> int:
        return self.images["train"][0, ..., 0].size


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
        # In alphabetical order 10 comes before 2: the order of the numbers is the documented one.
        rows = {f"train_data_batch_{i}.npz": slice(2 * i - 2, 2 * i) for i in range(1, 10)}
        rows["train_data_batch_10.npz"] = slice(18, 23)
        if "downsampled" in name:
            made.write_tar("train")
            made.write_tar("test")
        elif name == NEW:
            made.write_zip("Imagenet32_train_npz.zip", dict(sorted(rows.items())), "train")
            made.write_zip("Imagenet32_val_npz.zip", {"val_data.npz": slice(None)}, "test")
        else:
            for part, chosen in ((1, list(rows)[:5]), (2, list(rows)[5:])):
                members = {name: rows[name] for name in chosen}
                made.write_zip(f"Imagenet64_train_part{part}_npz.zip", members, "train")
            made.write_zip("Imagenet64_val_npz.zip", {"val_data.npz": slice(None)}, "test")
        made.register(monkeypatch)
        return made

    return small


@pytest.mark.parametrize("name", [OLD, "downsampled_imagenet/64x64"])
def test_the_tars_give_their_images_in_their_order(make, name, capfd, one_clear_line):
    old = make(name)
    data = old.load()
    old.check(data)
    assert isinstance(data.train, np.memmap)
    assert (data.name, data.levels, data.event_shape[-1]) == (name, 256, 3)
    assert (data.labels, data.num_classes) == (None, 0)
    said = f"vdm_jax: preparing {name} in {old.data_dir} (once)\n"
    assert capfd.readouterr() == ("", said)
    for path in old.folder.iterdir():
        path.unlink()
    old.check(old.load())  # the decoded copy suffices
    with one_clear_line(f"{name} has no class labels; leave class_labels out"):
        old.load(class_labels=True)


@pytest.mark.parametrize("name", [NEW, NEW64])
def test_the_zips_give_their_images_and_labels_in_the_order_of_their_numbers(make, name):
    new = make(name)
    data = new.load(class_labels=True)
    new.check(data)
    for part, labels in new.labels.items():
        np.testing.assert_array_equal(data.labels[part], labels)
    assert data.num_classes == len(set(data.label_names)) == 1000
    assert (data.label_names[0], data.label_names[1]) == ("n02119789", "n02100735")


def test_a_class_without_training_images(make, monkeypatch, one_clear_line):
    new = make(NEW)
    new.labels["test"][:] = 500
    new.labels["train"][:] = 499
    new.write_zip("Imagenet32_train_npz.zip", {"batch_1.npz": slice(None)}, "train")
    new.write_zip("Imagenet32_val_npz.zip", {"val_data.npz": slice(None)}, "test")
    new.register(monkeypatch)
    with one_clear_line(f"class 'n[0-9]+' of {NEW} has test images but none to train on"):
        new.load(class_labels=True)


def test_the_old_archives_must_be_there(make, one_clear_line, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "unreachable", lambda *_: pytest.fail("asked the network"))
    with one_clear_line(
        f"{OLD} is not on this machine and can't be downloaded, as image-net.org doesn't offer it "
        "any more; put train_32x32.tar .4,113,018,880 bytes, sha256 244a323d[0-9a-f]{56}., "
        "valid_32x32.tar .161,474,560 bytes, sha256 862e5594[0-9a-f]{56}. into manual_dir=.*none, "
        f"or '{NEW}' can be downloaded, but is another data set with other bits per dim"
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


def test_download(make, serve, tmp_path, monkeypatch, one_clear_line):
    new = make(NEW)
    with one_clear_line(
        "Imagenet32_train_npz.zip can't be downloaded .*no network.*; put "
        "Imagenet32_train_npz.zip .*sha256.*Imagenet32_val_npz.zip .* into manual_dir="
    ):
        load(NEW, data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    new.register(monkeypatch, serve(new.folder))
    new.check(load(NEW, data_dir=tmp_path / "d", manual_dir=tmp_path / "none"))
    assert len(list((tmp_path / "d" / "downloads").rglob("*.zip"))) == 2  # kept


def test_a_tar_is_never_held_whole(tmp_path):
    path = tmp_path / "many.tar"
    content = _png(np.zeros((32, 32, 3), np.uint8))
    with tarfile.open(path, "w") as tar:
        for i in range(2000):
            member = tarfile.TarInfo(f"train_32x32/{i:07d}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
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


def test_the_table_agrees_with_tensorflow_datasets():
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    for name, spec in IMAGENET.items():
        kind, size = name.split("/")
        folder = Path(str(tfds.core.tfds_path(f"datasets/{kind}")))
        known = checksums.load_url_infos(folder / "checksums.tsv")
        found = [archive for part in spec.archives.values() for archive in part]
        for archive in found:
            info = known[archive.url]
            assert (info.size, info.checksum) == (archive.size, archive.sha256)
            assert info.filename == archive.filename
        # Of each size all archives are there.
        wanted = {i.filename for i in known.values() if size.split("x")[0] in i.filename}
        assert {archive.filename for archive in found} == wanted
