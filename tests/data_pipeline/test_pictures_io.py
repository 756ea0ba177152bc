"""What goes in comes out again, what can't be taken is refused, and nothing hostile is believed."""

import contextlib
import errno
import io
import json
import os
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vdm_jax.data import packing, picture, pictures_io, pictures_meta, pictures_read
from vdm_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 128, (5, 4, 6, 3), dtype=np.uint8)
SHAPE = IMAGES.shape
DTYPES = ("u1", "i1", "<u2", ">u2", "<i2", ">i2", "<u4", ">i4", "<i8", ">u8")
OTHERS = {
    "label": np.array([3, 1, 2], ">i8"),
    "names": np.array(["a", "bé"]),
    "raw": np.array([b"x", b"yz"]),
    "when": np.array(["2020-01-01"], "M8[D]"),
    "mask": np.asfortranarray(RNG.integers(0, 2, (3, 4, 6)) > 0),
    "scalar": np.float32(0.1),
    "empty": np.zeros((0, 4, 6), np.uint8),
    "flat": np.arange(12, dtype=np.int16).reshape(3, 4),
}


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def back(path: Path, levels: int = 256) -> Path:
    """Reads `path`, and writes what it was under another name."""
    came = pictures_io.read(path, levels)
    assert came.images.dtype == np.uint8 and came.images.flags.c_contiguous
    assert pictures_io.check_meta(came.meta, came.images.shape)
    out = path.with_name("back" + path.suffix)
    pictures_io.write(came.meta, came.images, out)
    assert sorted(path.parent.iterdir()) == sorted([path, out])
    return out


def refused(path: Path, levels: int = 256) -> str:
    with pytest.raises(UserError) as caught:
        pictures_io.read(path, levels)
    said = str(caught.value)
    assert "\n" not in said and path.name in said
    return said


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(1, 4), min_size=3, max_size=4),
    order=st.sampled_from("CF"),
    seed=st.integers(0, 9),
)
def test_an_npy_comes_back_to_the_byte(tmp_path_factory, dtype, shape, order, seed):
    values = np.random.default_rng(seed).integers(0, 128, shape).astype(dtype, order=order)
    path = saved(tmp_path_factory.mktemp("npy") / "a.npy", values)
    came = pictures_io.read(path)
    np.testing.assert_array_equal(came.images.reshape(values.shape), values)
    assert len(came.meta) == 2
    assert back(path).read_bytes() == path.read_bytes()


def test_an_npy_of_many_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures_io, "_PIECE", 100)
    path = saved(tmp_path / "a.npy", np.asfortranarray(IMAGES.astype(">i4")))
    assert back(path).read_bytes() == path.read_bytes()
    words = pictures_io.read(path).words
    assert words == "5 images 4x6x3 of a.npy (int32)"


def test_an_npz_comes_back_array_by_array(tmp_path):
    arrays = {
        "z": np.asfortranarray(IMAGES[..., 0].astype(">u2")),
        **OTHERS,
        "a/b": IMAGES[:2, ..., :1].astype(np.int8),
    }
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    came = pictures_io.read(path)
    np.testing.assert_array_equal(came.images, np.concatenate([IMAGES, IMAGES[:2]])[..., :1])
    assert came.words == "7 images 4x6x1 of a.npz (z uint16, a/b int8; 8 other arrays kept)"
    with np.load(back(path)) as found:
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert found[name].dtype.str == array.dtype.str, name
            np.testing.assert_array_equal(found[name], array, strict=True)
            assert found[name].flags.f_contiguous == array.flags.f_contiguous


def test_an_npz_of_images_alone_keeps_nothing_else(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, test=IMAGES[:2], train=IMAGES[2:])
    came = pictures_io.read(path)
    np.testing.assert_array_equal(came.images, IMAGES)
    assert len(came.meta) < 80
    with np.load(back(path)) as found:
        np.testing.assert_array_equal(found["train"], IMAGES[2:])


def put(folder: Path, name: str, image: Image.Image, kind: str = "PNG", **options) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, format=kind, **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures of all kinds."""
    root = tmp_path / "in"
    palette = Image.fromarray(IMAGES[3]).quantize(4)
    put(root, "c/sub/a.PNG", Image.fromarray(IMAGES[0]))
    put(root, "c/grey.png", Image.fromarray(IMAGES[1, ..., 0]))
    put(root, "c.png", palette)
    put(root, "opaque.png", Image.fromarray(IMAGES[1, ..., 0]).convert("LA"))
    put(root, "é x.jpg", Image.fromarray(IMAGES[2]), "JPEG")
    put(root, "c/w.WebP", Image.fromarray(IMAGES[4]), "WEBP", lossless=True)
    put(root, "jpeg.png", Image.fromarray(IMAGES[2]), "JPEG")
    (root / "notes.txt").write_text("left out")
    (root / ".hidden.png").write_text("left out")
    return root


def files(root: Path) -> dict[str, Path]:
    return {str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file()}


def test_a_folder_comes_back_picture_by_picture(folder):
    came = pictures_io.read(folder)
    assert came.words == (
        "7 pictures 4x6x3 of the folder in (pixels of 3 JPEG or WebP pictures are kept, not their "
        "files; left out, as no pictures by name: 1, first 'notes.txt')"
    )
    assert pictures_io.check_meta(came.meta, came.images.shape) == "folder of 7 pictures"
    found = files(back(folder))
    names = {
        "c/sub/a.PNG": "c/sub/a.PNG",
        "c/grey.png": "c/grey.png",
        "c.png": "c.png",
        "opaque.png": "opaque.png",
        "é x.jpg.png": "é x.jpg",
        "c/w.WebP.png": "c/w.WebP",
        "jpeg.png": "jpeg.png",
    }
    assert found.keys() == names.keys()
    for out, name in names.items():
        with Image.open(found[out], formats=["PNG"]) as image:
            grey = name in ("c/grey.png", "opaque.png")
            assert image.mode == ("L" if grey else "RGB")
            wanted = picture.decode((folder / name).read_bytes(), 1 if grey else 3)
            np.testing.assert_array_equal(np.asarray(image), np.asarray(wanted))


def test_a_folder_of_grey_pictures_has_one_channel(tmp_path):
    root = tmp_path / "in"
    for index in range(9):
        put(root, f"{index}.png", Image.fromarray(IMAGES[index % 5, ..., 0]))
    came = pictures_io.read(root)
    np.testing.assert_array_equal(came.images[:5], IMAGES[..., :1])
    found = files(back(root))
    np.testing.assert_array_equal(np.asarray(Image.open(found["8.png"])), IMAGES[3, ..., 0])


NOT_TAKEN = {
    "images[None]": IMAGES[0, ..., 0],
    "at least one image": IMAGES[:0],
    "float32 values": IMAGES.astype(np.float32),
    "bool values": IMAGES > 3,
    "value 300, outside [0, 256)": IMAGES.astype(int) + 300 * (IMAGES.max() == IMAGES),
    "value -1, outside": IMAGES.astype(int) - (IMAGES == 0),
}


@pytest.mark.parametrize("said", NOT_TAKEN)
def test_arrays_that_are_no_images(tmp_path, said):
    array = NOT_TAKEN[said]
    if "300" in said:
        array = np.where(array > 300, 300, array)
    assert said in refused(saved(tmp_path / "a.npy", array))


def test_levels(tmp_path):
    path = saved(tmp_path / "a.npy", IMAGES)
    most = int(IMAGES.max())
    assert pictures_io.read(path, most + 1).images.max() == most
    assert f"value {most}, outside [0, {most})" in refused(path, most)


def test_files_that_are_not_taken(tmp_path, monkeypatch):
    assert "is not there" in refused(tmp_path / "no.npy")
    path = tmp_path / "a.npy"
    np.save(path, np.array([{}, {}]), allow_pickle=True)
    assert "no object is unpickled" in refused(path)
    saved(path, IMAGES)
    path.write_bytes(path.read_bytes()[:-1])
    assert "promises uint8 (5, 4, 6, 3), which is 360 bytes, but the file has 359" in refused(path)
    path.write_text("hello")
    assert "none of what is taken" in refused(path)
    path.write_bytes(b"PK\3\4 and no more")
    assert "can't be read" in refused(path)
    put(tmp_path, "one.png", Image.fromarray(IMAGES[0]))
    assert "single picture" in refused(tmp_path / "one.png")
    monkeypatch.setattr(pictures_read, "MOST_PIXELS", 359)
    assert "more than 359 values" in refused(saved(path, IMAGES))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "found no arrays"),
        ({"labels": np.arange(3)}, "holds no images"),
        ({"a": IMAGES, "b": IMAGES[:, 1:]}, "'a' uint8 (5, 4, 6, 3), 'b' uint8 (5, 3, 6, 3)"),
        ({"a": IMAGES, "who": np.array([{}])}, "array 'who' in"),
        ({"a": IMAGES, "b": IMAGES + 200.0, "c": IMAGES.astype(int) + 999}, "array 'c' in"),
        ({"a": IMAGES, ".b": np.arange(3)}, "no plain relative path"),
        ({"a": IMAGES, "b": np.arange(3000.0)}, "have 24,000 bytes, of which 20,000"),
        ({"a": IMAGES, "b" * 256: np.arange(3)}, "too long"),
    ],
)
def test_archives_that_are_not_taken(tmp_path, monkeypatch, arrays, said):
    monkeypatch.setattr(pictures_read, "MOST", 20_000)
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    assert said in refused(path)


def test_archives_of_other_things(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=IMAGES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "hello")
    assert "'notes.txt', which is no array" in refused(path)
    np.savez(path, a=IMAGES)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.npy", archive.read("a.npy"))
    assert "'a' twice" in refused(path)


def test_folders_that_are_not_taken(folder):
    def said(name: str, image: Image.Image | None, kind: str = "PNG") -> str:
        if image is None:
            (folder / name).write_text("hello")
        else:
            put(folder, name, image, kind)
        found = refused(folder)
        (folder / name).unlink()
        return found

    assert "too.png is 3x6 (height x width) but" in said("too.png", Image.fromarray(IMAGES[0, 1:]))
    assert "is a .gif file" in said("a.gif", Image.fromarray(IMAGES[0]), "GIF")
    assert "text.png is no PNG" in said("text.png", None)
    assert "there twice" in said("é x.jpg.png", Image.fromarray(IMAGES[0]))
    transparent = Image.fromarray(np.dstack([IMAGES[0], IMAGES[0, ..., 0]]))
    assert "is transparent" in said("t.png", transparent)
    os.symlink(folder / "c.png", os.fsencode(folder) + b"/\xff.png")
    assert "UTF-8; rename it" in refused(folder)
    (folder.parent / "none").mkdir()
    assert "holds no pictures" in refused(folder.parent / "none")


def test_a_folder_that_would_be_a_picture_too(tmp_path):
    put(tmp_path / "in", "a.jpg", Image.fromarray(IMAGES[0]), "JPEG")
    put(tmp_path / "in", "a.jpg-x.png", Image.fromarray(IMAGES[0]))
    put(tmp_path / "in", "a.jpg.png/b.png", Image.fromarray(IMAGES[0]))
    assert "a picture and a folder" in refused(tmp_path / "in")


def metas(tmp_path: Path) -> list[tuple[bytes, np.ndarray]]:
    np.savez(tmp_path / "hostile.npz", train=IMAGES, **OTHERS)
    saved(tmp_path / "hostile.npy", IMAGES)
    for index in range(5):
        put(tmp_path / "in", f"c{index % 2}/{index}.png", Image.fromarray(IMAGES[index]))
    paths = [tmp_path / name for name in ("hostile.npy", "hostile.npz", "in")]
    return [(came.meta, came.images) for came in map(pictures_io.read, paths)]


@contextlib.contextmanager
def little_memory(most: int = 12 << 20):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def test_damaged_meta_is_refused_or_means_something(tmp_path):
    meant = 0
    for meta, images in metas(tmp_path):
        damaged = [meta[:end] for end in range(len(meta))] + [meta + b"\0"]
        for at in range(len(meta)):
            for mask in (1, 16, 128, 255):
                damaged.append(meta[:at] + bytes([meta[at] ^ mask]) + meta[at + 1 :])
        with little_memory():
            for each in damaged:
                try:
                    assert pictures_io.check_meta(each, images.shape)
                except ValueError as error:
                    assert "\n" not in str(error)  # noqa: PT017
                    continue
                meant += 1
                with contextlib.suppress(UserError):
                    pictures_io.write(each, images, tmp_path / f"out{meant}")
    assert meant > 2


def test_any_bytes_are_refused_or_mean_something():
    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.integers(0, 4), st.binary(max_size=30))
    def check(kind, rest):
        with contextlib.suppress(ValueError):
            pictures_io.check_meta(bytes([kind]) + rest, SHAPE)

    check()


def listed(*names: bytes) -> bytes:
    """The meta of a folder of pictures of these names, none of them grey."""
    bits = bytes(-(-len(names) // 8))
    return b"\3" + packing.packed(bits + b"".join(name + b"\0" for name in names))


@pytest.mark.parametrize(
    "names",
    [
        [b"/etc/a.png"],
        [b"../a.png"],
        [b"a/../../b.png"],
        [b"./a.png"],
        [b".bashrc.png"],
        [b"a//b.png"],
        [b"a.png/"],
        [b""],
        [b"a.txt"],
        [b"a.png", b"a.png"],
        [b"b.png", b"a.png"],
        [b"a.png", b"a.png/b.png"],
        [b"\xff.png"],
        [b"a" * 252 + b".png"],
        [b"a/" * 2000 + b".png"],
    ],
)
def test_names_that_are_refused(names):
    shape = (len(names), 4, 6, 3)
    good = [b"%d.png" % index for index in range(len(names))]
    assert pictures_io.check_meta(listed(*good), shape)
    with pytest.raises(ValueError, match=r"path|name|twice|folder|utf-8|too long|more than"):
        pictures_io.check_meta(listed(*names), shape)


def test_pictures_are_counted():
    meta = listed(b"a.png", b"b.png")
    assert pictures_io.check_meta(meta, (2, 4, 6, 3))
    for shape in ((1, 4, 6, 3), (3, 4, 6, 3), (2, 4, 6, 1), (2, 4, 6, 2), (9, 4, 6, 3)):
        with pytest.raises(ValueError, match=r"names|channels|marks|twice|path|no name"):
            pictures_io.check_meta(meta, shape)
    marked = b"\3" + packing.packed(b"\1a.png\0b.png\0")  # a picture after the last is grey
    with pytest.raises(ValueError, match="marks of grey"):
        pictures_io.check_meta(marked, (2, 4, 6, 3))


def archived(rows: object, others: bytes = b"") -> bytes:
    told = packing.packed(rows if isinstance(rows, bytes) else json.dumps(rows).encode())
    return b"\2" + struct.pack("<I", len(told)) + told + (packing.packed(others) if others else b"")


GOOD = ["a", "|u1", 0, [5, 4, 6, 3]]


@pytest.mark.parametrize(
    "rows",
    [
        b"[" * 100_000,
        b"[\xff]",
        b'["\\ud800"]',
        {"a": GOOD},
        [],
        [GOOD, GOOD],
        [["a", "|O", 0, [5, 4, 6, 3]]],
        [["a", "|u1", 0, [5, 4, 6]]],
        [["a", "|u1", 0, [4, 4, 6, 3]]],
        [["a", "|u1", 2, [5, 4, 6, 3]]],
        [["a", "<u1", 0, [5, 4, 6, 3]]],
        [["a", "u1,u1", 0, [5, 4, 6, 3]]],
        [["a", "|u1", 0, [5.0, 4, 6, 3]]],
        [["/a", "|u1", 0, [5, 4, 6, 3]]],
        [["a/../../b", "|u1", 0, [5, 4, 6, 3]]],
        [["\ud800", "|u1", 0, [5, 4, 6, 3]]],
        [GOOD, ["b", "<M8[zz]", 0, [0]]],
        [GOOD, ["b", "<f8", 0, [1 << 40]]],
        [GOOD, ["b", "<f8", 0, [-1]]],
        [GOOD, ["b", "<f8", 0, [True]]],
        [GOOD, ["b", "<f8", 0, [1]]],  # and nothing kept
        [GOOD, ["b", "<U999999999", 0, [1]]],
        [GOOD, ["b", "<f8", 0, [0] * 33]],
    ],
)
def test_arrays_that_are_refused(rows):
    assert pictures_io.check_meta(archived([GOOD]), SHAPE) == ".npz with 1 of 1 arrays images"
    meta = archived(rows)
    with little_memory(), pytest.raises(ValueError, match=r".") as caught:
        pictures_io.check_meta(meta, SHAPE)
    assert "\n" not in str(caught.value)


def test_what_is_kept_has_the_size_that_is_told():
    rows = [GOOD, ["b", "<f8", 0, [2]]]
    assert pictures_io.check_meta(archived(rows, bytes(16)), SHAPE)
    for others in (bytes(15), bytes(17)):
        with pytest.raises(ValueError, match="16"):
            pictures_io.check_meta(archived(rows, others), SHAPE)


def test_little_that_unpacks_to_much():
    bomb = b"\1" + zlib.compress(bytes(30 << 20))
    with little_memory():
        for meta in (b"\3" + bomb, b"\2" + struct.pack("<I", len(bomb)) + bomb):
            with pytest.raises(ValueError, match="unpacks to more than"):
                pictures_io.check_meta(meta, SHAPE)


def test_what_needs_much_memory_to_unpack():
    greedy = packing.lzma.compress(b"\0a.png\0", preset=9)
    with pytest.raises(ValueError, match=r"can't be unpacked \(Memory usage limit"):
        pictures_io.check_meta(b"\3\2" + greedy, (1, 4, 6, 3))


def test_what_is_there_already_is_left_alone(tmp_path):
    for number, (meta, images) in enumerate(metas(tmp_path)):
        out = tmp_path / f"out{number}"
        out.write_text("mine")
        with pytest.raises(UserError, match=r"there already.*; name another"):
            pictures_io.write(meta, images, out)
        assert out.read_text() == "mine"
    with pytest.raises(UserError, match="nowhere is no folder; make it first"):
        pictures_io.write(meta, images, tmp_path / "nowhere" / "out")


class Full(io.FileIO):
    """A file on a disk with room for 100 bytes more."""

    left = 100

    def write(self, content):
        self.left -= len(content)
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    given = metas(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(Path, "open", lambda self, mode: Full(self, mode.strip("b")))
    for meta, images in given:
        with pytest.raises(UserError, match=r"No space left on device.*nothing was written"):
            pictures_io.write(meta, images, tmp_path / "out")
        assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fails_at_the_end_leaves_nothing(tmp_path, monkeypatch):
    def fails(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    given = metas(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(os, "fsync", fails)
    for meta, images in given:
        with pytest.raises(UserError, match="out can't be written: Input/output error"):
            pictures_io.write(meta, images, tmp_path / "out")
        assert sorted(tmp_path.rglob("*")) == before


def test_images_that_do_not_go_with_meta(tmp_path):
    signed = pictures_io.read(saved(tmp_path / "a.npy", IMAGES.astype(np.int8)))
    with pytest.raises(UserError, match="value 200, which int8 can't"):
        pictures_io.write(signed.meta, np.full_like(IMAGES, 200), tmp_path / "out")
    put(tmp_path / "in", "a.png", Image.fromarray(IMAGES[0]))
    put(tmp_path / "in", "b.png", Image.fromarray(IMAGES[0, ..., 0]))
    mixed = pictures_io.read(tmp_path / "in")
    with pytest.raises(UserError, match=r"'b.png' was grey"):
        pictures_io.write(mixed.meta, mixed.images[::-1], tmp_path / "out")
    with pytest.raises(ValueError, match="must be uint8"):
        pictures_io.write(signed.meta, IMAGES.astype(int), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "in"]


def test_the_order_of_names_is_by_folder():
    names = [b"a.png-x", b"a.png/b", b"a.png", b"a/b"]
    assert sorted(names, key=pictures_meta.order) == [b"a/b", b"a.png", b"a.png/b", b"a.png-x"]


def test_meta_is_as_documented(tmp_path):
    """docs/vdmz.md, read with nothing but zlib and json."""
    assert pictures_io.read(saved(tmp_path / "a.npy", IMAGES)).meta == bytes.fromhex("01 20")
    assert pictures_io.read(saved(tmp_path / "a.npy", IMAGES[..., 0])).meta == b"\1\0"
    columns = np.asfortranarray(IMAGES.astype(">i4"))
    assert pictures_io.read(saved(tmp_path / "a.npy", columns)).meta == bytes(
        [1, 2 + 4 + 8 + 16 + 32]
    )

    label = np.array([[1, 2], [3, 4]], ">i2", order="F")
    np.savez(tmp_path / "a.npz", x=IMAGES[:2], label=label, bit=np.array(True), y=IMAGES[2:])
    meta = pictures_io.read(tmp_path / "a.npz").meta
    end = 5 + int.from_bytes(meta[1:5], "little")
    assert meta[0] == 2 and meta[5] == 1 and meta[end] == 1
    assert json.loads(zlib.decompress(meta[6:end])) == [
        ["x", "|u1", 0, [2, 4, 6, 3]],
        ["label", ">i2", 1, [2, 2]],
        ["bit", "|b1", 0, []],
        ["y", "|u1", 0, [3, 4, 6, 3]],
    ]
    assert zlib.decompress(meta[end + 1 :]) == bytes.fromhex("0001 0003 0002 0004 01")

    put(tmp_path / "in", "a-b.png", Image.fromarray(IMAGES[0]))
    put(tmp_path / "in", "a/x.jpg", Image.fromarray(IMAGES[1, ..., 0]), "JPEG")
    came = pictures_io.read(tmp_path / "in")
    assert came.meta[:2] == b"\3\1"
    assert zlib.decompress(came.meta[2:]) == b"\x80a/x.jpg.png\0a-b.png\0"
    np.testing.assert_array_equal(came.images[1], IMAGES[0])
