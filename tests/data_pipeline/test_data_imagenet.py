"""The two pairs of small ImageNets, from archives in the original layout to mapped pixels."""

import dataclasses
import functools
import hashlib
import http.server
import io
import tarfile
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vdm_jax.data import fetch, imagenet, load
from vdm_jax.data.imagenet import IMAGENET
from vdm_jax.data.imagenet_files import png_blocks
from vdm_jax.data.published import encode_png

COUNTS = {"train": 23, "test": 6}
OLD, NEW = "downsampled_imagenet/32x32", "imagenet_resized/32x32"


@dataclasses.dataclass
class Small:
    """A small data set with its true pixels and labels, and the folder of its archives."""

    name: str
    folder: Path
    data_dir: Path
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    monkeypatch: pytest.MonkeyPatch

    def load(self, **kwargs):
        return load(self.name, data_dir=self.data_dir, manual_dir=self.folder, **kwargs)

    def register(self, site: str = "http://127.0.0.1:9/") -> None:
        """Puts the sizes and checksums of the files that lie in the folder into the table."""

        def small(archive):
            path = self.folder / archive.filename
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            return dataclasses.replace(
                archive, url=site + path.name, size=path.stat().st_size, sha256=digest
            )

        spec = IMAGENET[self.name]
        archives = {part: tuple(map(small, found)) for part, found in spec.archives.items()}
        small_spec = dataclasses.replace(spec, counts=COUNTS, archives=archives)
        self.monkeypatch.setitem(IMAGENET, self.name, small_spec)

    def write_tar(self, part: str, change=lambda names_and_bytes: names_and_bytes) -> None:
        stem = f"{'train' if part == 'train' else 'valid'}_{self.name.split('/')[1]}"
        files = [
            (f"{stem}/{i:07d}.png", encode_png(image)) for i, image in enumerate(self.images[part])
        ]
        with tarfile.open(self.folder / f"{stem}.tar", "w") as tar:
            top = tarfile.TarInfo(stem)
            top.type = tarfile.DIRTYPE
            tar.addfile(top)
            for name, content in change(files):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    def write_zip(self, file: str, members: dict[str, slice], part: str, **change) -> None:
        with zipfile.ZipFile(self.folder / file, "w") as outer:
            for name, rows in members.items():
                data = self.images[part][rows].transpose(0, 3, 1, 2)
                arrays = {
                    "data": data.reshape(len(data), -1),
                    "labels": self.labels[part][rows] + 1,
                    "mean": np.zeros(data[0].size),
                } | change
                buffer = io.BytesIO()
                np.savez_compressed(buffer, **arrays)
                outer.writestr(name, buffer.getvalue())


def _make(name, tmp_path, monkeypatch) -> Small:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rng = np.random.default_rng(1)
    shape = IMAGENET[name].event_shape
    images = {k: rng.integers(0, 256, (n, *shape), dtype=np.uint8) for k, n in COUNTS.items()}
    labels = {k: rng.integers(0, 1000, n) for k, n in COUNTS.items()}
    labels["train"][:2] = 0, 999
    labels["test"][:] = labels["train"][5:11]  # a class that can't be trained is refused
    (tmp_path / "manual").mkdir()
    return Small(name, tmp_path / "manual", tmp_path / "d", images, labels, monkeypatch)


@pytest.fixture(params=["32x32", "64x64"])
def old(request, tmp_path, monkeypatch) -> Small:
    small = _make(f"downsampled_imagenet/{request.param}", tmp_path, monkeypatch)
    small.write_tar("train")
    small.write_tar("test")
    small.register()
    return small


@pytest.fixture
def old32(tmp_path, monkeypatch) -> Small:
    small = _make(OLD, tmp_path, monkeypatch)
    small.write_tar("train")
    small.write_tar("test")
    small.register()
    return small


@pytest.fixture
def new(tmp_path, monkeypatch) -> Small:
    small = _make(NEW, tmp_path, monkeypatch)
    rows = {f"train_data_batch_{i}.npz": slice(2 * i - 2, 2 * i) for i in range(1, 10)}
    rows["train_data_batch_10.npz"] = slice(18, 23)
    # In alphabetical order 10 comes before 2: the order of the numbers is the documented one.
    small.write_zip("Imagenet32_train_npz.zip", dict(sorted(rows.items())), "train")
    small.write_zip("Imagenet32_val_npz.zip", {"val_data.npz": slice(None)}, "test")
    small.register()
    return small


def _assert_same(data, small: Small) -> None:
    for part, images in small.images.items():
        np.testing.assert_array_equal(getattr(data, part), images)


def test_the_tars_give_their_images_in_their_order(old, capfd):
    data = old.load()
    _assert_same(data, old)
    assert isinstance(data.train, np.memmap)
    size = int(old.name[-2:])
    assert (data.name, data.levels, data.event_shape) == (old.name, 256, (size, size, 3))
    assert (data.labels, data.num_classes) == (None, 0)
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"vdm_jax: preparing {old.name} in {old.data_dir} (once)\n")
    for path in old.folder.iterdir():
        path.unlink()
    _assert_same(old.load(), old)  # the decoded copy suffices


def test_the_zips_give_their_images_and_labels_in_the_order_of_their_numbers(new):
    data = new.load(class_labels=True)
    _assert_same(data, new)
    for part, labels in new.labels.items():
        np.testing.assert_array_equal(data.labels[part], labels)
    assert data.num_classes == 1000
    assert (data.label_names[0], data.label_names[1]) == ("n02119789", "n02100735")
    assert not list(new.data_dir.glob("tmp*"))


def test_64x64_comes_in_two_archives(tmp_path, monkeypatch):
    small = _make("imagenet_resized/64x64", tmp_path, monkeypatch)
    rows = np.array_split(np.arange(23), 10)
    names = {f"train_data_batch_{i + 1}.npz": r for i, r in enumerate(rows)}
    for part, chosen in ((1, list(names)[:5]), (2, list(names)[5:])):
        members = {name: names[name] for name in chosen}
        small.write_zip(f"Imagenet64_train_part{part}_npz.zip", members, "train")
    small.write_zip("Imagenet64_val_npz.zip", {"val_data.npz": slice(None)}, "test")
    small.register()
    data = small.load()
    _assert_same(data, small)
    np.testing.assert_array_equal(data.labels["train"], small.labels["train"])


def test_the_old_archives_have_no_labels(old32, one_clear_line):
    with one_clear_line(f"{OLD} has no class labels; leave class_labels out"):
        old32.load(class_labels=True)


def test_a_class_without_training_images(new, one_clear_line):
    new.labels["test"][:] = 500
    new.labels["train"][:] = 499
    new.write_zip("Imagenet32_train_npz.zip", {"batch_1.npz": slice(None)}, "train")
    new.write_zip("Imagenet32_val_npz.zip", {"val_data.npz": slice(None)}, "test")
    new.register()
    with one_clear_line(f"class 'n[0-9]+' of {NEW} has test images but none to train on"):
        new.load(class_labels=True)


def test_the_old_archives_must_be_there(one_clear_line, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "unreachable", lambda *_: pytest.fail("asked the network"))
    with one_clear_line(
        f"{OLD} is not on this machine and can't be downloaded, as image-net.org doesn't offer it "
        "any more; put train_32x32.tar .4,113,018,880 bytes, sha256 244a323d[0-9a-f]{56}., "
        "valid_32x32.tar .161,474,560 bytes, sha256 862e5594[0-9a-f]{56}. into manual_dir=.*none, "
        f"or '{NEW}' can be downloaded, but is another data set with other bits per dim"
    ):
        load(OLD, data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    assert not (tmp_path / "d").exists()


def test_only_the_missing_archive_is_asked_for(old32, one_clear_line):
    (old32.folder / "valid_32x32.tar").unlink()
    with one_clear_line("; put valid_32x32.tar .[0-9,]+ bytes"):
        old32.load()


def test_the_new_archives_without_network(new, tmp_path, one_clear_line):
    with one_clear_line(
        "Imagenet32_train_npz.zip can't be downloaded .*no network.*; put "
        "Imagenet32_train_npz.zip .*sha256.*Imagenet32_val_npz.zip .* into manual_dir="
    ):
        load(NEW, data_dir=tmp_path / "d", manual_dir=tmp_path / "none")


def test_download(new, tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(new.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        new.register(f"http://127.0.0.1:{server.server_port}/")
        data = load(NEW, data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
        server.shutdown()
    _assert_same(data, new)
    np.testing.assert_array_equal(data.labels["test"], new.labels["test"])
    assert len(list((tmp_path / "d" / "downloads").rglob("*.zip"))) == 2  # kept


def test_wrong_checksum(old32, one_clear_line):
    path = old32.folder / "valid_32x32.tar"
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    with one_clear_line(f"{path} has a wrong checksum: .* get it anew .sha256 .*or delete it"):
        old32.load()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda files: files[:-1], f"{OLD}, train: 22 images came; wanted 23"),
        (lambda files: [*files, files[0]], f"{OLD}, train: more than 23 images came"),
        (
            lambda files: [*files[:7], (files[7][0], files[7][1][:-40]), *files[8:]],
            "train_32x32/0000007.png in .*train_32x32.tar is broken",
        ),
        (
            lambda files: [*files[:7], (files[7][0], b""), *files[8:]],
            "train_32x32/0000007.png in .*train_32x32.tar is empty",
        ),
        (
            lambda files: [(files[0][0], encode_png(np.zeros((32, 31, 3), np.uint8)))],
            r"train_32x32/0000000.png in .* is \(32, 31, 3\); wanted \(32, 32, 3\)",
        ),
    ],
)
def test_a_broken_tar_names_the_member(old32, one_clear_line, change, match):
    old32.write_tar("train", change)
    old32.register()
    with one_clear_line(match):
        old32.load()
    assert not list(old32.data_dir.glob("decoded/*"))


def test_a_tar_cut_short(old32, one_clear_line):
    path = old32.folder / "train_32x32.tar"
    path.write_bytes(path.read_bytes()[:20_700])
    old32.register()
    with one_clear_line("train_32x32.tar can't be read as .tar: unexpected end of data; get it"):
        old32.load()


def test_a_grey_png_is_repeated_over_the_channels(old32):
    grey = np.random.default_rng(2).integers(0, 256, (32, 32, 1), dtype=np.uint8)
    old32.write_tar("train", lambda files: [(files[0][0], encode_png(grey)), *files[1:]])
    old32.register()
    np.testing.assert_array_equal(old32.load().train[0], np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"labels": np.arange(23)},
            r"train_data_batch_1.npz: its labels are not integers in 1..10",
        ),
        ({"labels": np.arange(23) + 990}, "train_data_batch_1.npz: its labels are not integers"),
        ({"labels": np.ones(23)}, "train_data_batch_1.npz: its labels are not integers"),
        ({"labels": np.arange(22) + 1}, r"its data are uint8 \(23, 3072\); wanted uint8 \(22, 307"),
        (
            {"data": np.zeros((23, 3072))},
            r"its data are float64 \(23, 3072\); wanted uint8 \(23, 3",
        ),
        ({"data": np.zeros((23, 3072), np.uint8, order="F")}, "its data .* by columns; wanted"),
    ],
)
def test_a_broken_zip_names_the_member(new, one_clear_line, change, match):
    member = {"train_data_batch_1.npz": slice(None)}
    new.write_zip("Imagenet32_train_npz.zip", member, "train", **change)
    new.register()
    with one_clear_line(f"Imagenet32_train_npz.zip can't be read, .*{match}.*; get it anew"):
        new.load()


def test_zips_of_other_things(new, one_clear_line):
    path = new.folder / "Imagenet32_train_npz.zip"
    whole = path.read_bytes()
    for content, match in (
        (b"no zip", "can't be read, as .zip: File is not a zip file"),
        (whole[:5000], "can't be read, as .zip: File is not a zip file"),
        (whole[:300] + bytes(90) + whole[390:], "can't be read, .*; get it anew"),
    ):
        path.write_bytes(content)
        new.register()
        with one_clear_line(match):
            new.load()
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("train_data_batch_1.npz", b"no npz")
    new.register()
    with one_clear_line("can't be read, train_data_batch_1.npz: File is not a zip file; get it"):
        new.load()
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("readme.txt", b"")
    new.register()
    with one_clear_line("holds no .npz file; wanted the original archive"):
        new.load()


def test_a_tar_is_never_held_whole(tmp_path):
    path = tmp_path / "many.tar"
    content = encode_png(np.zeros((32, 32, 3), np.uint8))
    with tarfile.open(path, "w") as tar:
        for i in range(4000):
            member = tarfile.TarInfo(f"train_32x32/{i:07d}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    blocks = png_blocks(path, (32, 32, 3), tmp_path)
    for _ in range(10):
        next(blocks)
    tracemalloc.start()
    try:
        assert sum(len(images) for images, _ in blocks) == 3990
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000  # neither the pixels (12 MB) nor the members' headers (some MB)


def test_the_table_agrees_with_tensorflow_datasets():
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    for spec in IMAGENET.values():
        kind, size = spec.name.split("/")
        folder = Path(str(tfds.core.tfds_path(f"datasets/{kind}")))
        known = checksums.load_url_infos(folder / "checksums.tsv")
        archives = [archive for part in spec.archives.values() for archive in part]
        for archive in archives:
            info = known[archive.url]
            assert (info.size, info.checksum) == (archive.size, archive.sha256)
            assert info.filename == archive.filename
        number = size.split("x")[0]  # of each size all archives are there
        wanted = {info.filename for info in known.values() if number in info.filename}
        assert {archive.filename for archive in archives} == wanted
        assert spec.event_shape == (int(number), int(number), 3)
    assert len(imagenet._label_names(NEW)) == len(set(imagenet._label_names(NEW))) == 1000
