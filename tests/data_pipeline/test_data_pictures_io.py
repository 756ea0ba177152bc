"""What goes in comes out again, what can't be taken is refused, and nothing hostile is believed."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vdm_jax.data import picture_decoding, pictures_io
from vdm_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 128, (9, 4, 6, 3), dtype=np.uint8)
SHAPE = IMAGES.shape


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def put(folder: Path, name: str, image: np.ndarray, kind: str = "PNG", **options) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / name, format=kind, **options)


def back(path: Path) -> Path:
    """Reads `path`, and writes what it was under another name."""
    came = pictures_io.read(path)
    assert came.images.dtype == np.uint8 and came.images.flags.c_contiguous
    out = path.with_name("back" + path.suffix)
    pictures_io.write(came.meta, came.images, out)
    return out


def refused(path: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        pictures_io.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "axes", "meta"),
    [("u1", 4, "01 20"), ("i2", 3, "01 05"), ("u4", 4, "01 22")],
)
def test_an_npy_comes_back_to_the_byte(tmp_path, dtype, axes, meta):
    values = (IMAGES if axes == 4 else IMAGES[..., 0]).astype(dtype)
    path = saved(tmp_path / "a.npy", values)
    came = pictures_io.read(path)
    np.testing.assert_array_equal(came.images.reshape(values.shape), values)
    assert came.images.ndim == 4
    assert came.meta == bytes.fromhex(meta)
    size = "4x6x3" if axes == 4 else "4x6x1"
    assert came.words == f"9 images {size} of a.npy ({values.dtype.name})"
    assert pictures_io.check_meta(came.meta, came.images.shape) == f".npy of {values.dtype.name}"
    assert back(path).read_bytes() == path.read_bytes()


def test_other_orders_of_bytes_and_axes_come_back_as_values(tmp_path):
    path = saved(tmp_path / "a.npy", np.asfortranarray(IMAGES.astype(">i4")))
    np.testing.assert_array_equal(np.load(back(path)), IMAGES)
    array = pictures_io.of_array(IMAGES[::-1], "mine")
    np.testing.assert_array_equal(array.images, IMAGES[::-1])
    assert (array.meta, array.words) == (b"\1\x20", "mine")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures of all kinds."""
    root = tmp_path / "in"
    put(root, "c/sub/a.PNG", IMAGES[0])
    put(root, "c/grey.png", IMAGES[1, ..., 0])
    put(root, "opaque.png", np.dstack([IMAGES[1, ..., 0], np.full((4, 6), 255, np.uint8)]))
    put(root, "é x.jpg", IMAGES[2], "JPEG")
    put(root, "c/w.WebP", IMAGES[4], "WEBP", lossless=True)
    put(root, "jpeg.png", IMAGES[2], "JPEG")
    (root / "notes.txt").write_text("left out")
    (root / ".hidden.png").write_text("left out")
    return root


def test_a_folder_comes_back_picture_by_picture(folder):
    came = pictures_io.read(folder)
    assert came.words == ("6 pictures 4x6x3 of the folder in (their pixels; files left out: 1)")
    assert pictures_io.check_meta(came.meta, came.images.shape) == "folder of 6 pictures"
    out = back(folder)
    found = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    renamed = {"é x.jpg.png": "é x.jpg", "c/w.WebP.png": "c/w.WebP"}
    assert found.keys() == {"c/sub/a.PNG", "c/grey.png", "opaque.png", "jpeg.png", *renamed}
    for name, path in found.items():
        wanted = picture_decoding.read(folder / renamed.get(name, name), None)
        with Image.open(path, formats=["PNG"]) as image:
            assert image.mode == ("L" if name in ("c/grey.png", "opaque.png") else "RGB")
            np.testing.assert_array_equal(np.atleast_3d(np.asarray(image)), wanted)


def test_meta_of_a_folder_is_as_documented(tmp_path):
    """docs/vdmz.md, read with nothing but zlib."""
    put(tmp_path / "in", "a-b.png", IMAGES[0])
    put(tmp_path / "in", "a/x.jpg", IMAGES[1, ..., 0], "JPEG")
    came = pictures_io.read(tmp_path / "in")
    assert came.meta[:2] == b"\3\1"
    assert zlib.decompress(came.meta[2:]) == b"\x40a-b.png\0a/x.jpg.png\0"
    np.testing.assert_array_equal(came.images[0], IMAGES[0])
    assert [picture.shape[2] for picture in came.whole] == [3, 1]  # for the size of the raw pixels
    put(tmp_path / "grey", "a.png", IMAGES[0, ..., 0])
    came = pictures_io.read(tmp_path / "grey")
    np.testing.assert_array_equal(came.images, IMAGES[:1, ..., :1])
    assert zlib.decompress(came.meta[2:]) == b"a.png\0"  # all are grey
    np.testing.assert_array_equal(Image.open(back(tmp_path / "grey") / "a.png"), IMAGES[0, ..., 0])
    assert came.grey_folder and not pictures_io.of_array(IMAGES[..., :1], "").grey_folder
    three = pictures_io.tripled(came)  # for a model of three channels
    np.testing.assert_array_equal(three.images, np.repeat(came.images, 3, 3))
    assert zlib.decompress(three.meta[2:]) == b"\x80a.png\0"
    pictures_io.write(three.meta, three.images, tmp_path / "three")
    with Image.open(tmp_path / "three" / "a.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), IMAGES[0, ..., 0])


def test_pictures_of_any_sizes_come_back_from_tiles(tmp_path):
    sizes, given = {"a.png": (7, 4), "b/wide.png": (3, 9), "c.png": (1, 1)}, {}
    for name, size in sizes.items():
        given[name] = RNG.integers(0, 256, (*size, 3), np.uint8)
        put(tmp_path / "in", name, given[name])
    put(tmp_path / "in", "grey.png", given["a.png"][..., 0])
    came = pictures_io.read(tmp_path / "in", 4)
    assert came.images.shape == (2 + 3 + 1 + 2, 4, 4, 3) and len(came.whole) == 4
    np.testing.assert_array_equal(came.images[0], given["a.png"][:4])
    np.testing.assert_array_equal(came.images[1, 3], given["a.png"][6])  # repeated below the edge
    np.testing.assert_array_equal(came.images[3, :3], given["b/wide.png"][:, 4:8])
    heights_and_widths = np.array([7, 4, 3, 9, 1, 1, 7, 4], "<u4").tobytes()
    expected = b"\4\0\0\0" + heights_and_widths + b"\x10a.png\0b/wide.png\0c.png\0grey.png\0"
    assert came.meta[:2] == b"\3\2" and zlib.decompress(came.meta[2:]) == expected
    assert pictures_io.check_meta(came.meta, came.images.shape) == "folder of 4 pictures"
    pictures_io.write(came.meta, came.images, tmp_path / "out")
    for name, pixels in given.items():
        np.testing.assert_array_equal(Image.open(tmp_path / "out" / name), pixels)
    with Image.open(tmp_path / "out" / "grey.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), given["a.png"][..., 0])


def test_grey_tiles_are_three_channels_for_a_model_of_colour(tmp_path):
    picture = RNG.integers(0, 256, (5, 6), np.uint8)
    put(tmp_path / "in", "a.png", picture)
    came = pictures_io.read(tmp_path / "in", 4)
    assert came.grey_folder and came.images.shape == (4, 4, 4, 1)
    three = pictures_io.tripled(came)
    pictures_io.write(three.meta, three.images, tmp_path / "out")
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_files_that_are_not_taken(tmp_path):
    path = tmp_path / "a.npy"
    refused(saved(path, IMAGES + np.uint16(200)), r"value 327; wanted integers in \[0, 256\)")
    refused(saved(path, IMAGES / 2), "a.npy holds float64 values; wanted integers")
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, "a.npy can't be read")
    np.save(path, np.array([{}, {}]), allow_pickle=True)
    refused(path, "a.npy can't be read .*Python objects")
    np.savez(tmp_path / "a.npz", IMAGES)
    put(tmp_path, "one.png", IMAGES[0])
    path.write_text("hello")
    for name, said in (("a.npz", "is an .npz"), ("one.png", "can't be"), ("a.npy", "can't be")):
        refused(tmp_path / name, f"{name} {said}.*; wanted an .npy of integers .* folder")
    refused(tmp_path / "no.npy", "no.npy is not there")


def test_folders_that_are_not_taken(folder):
    for name, image, kind, match in (
        ("too.png", IMAGES[0, 1:], "PNG", r"is \(3, 6\) \(height, width\) but .* is \(4, 6\)"),
        ("a.gif", IMAGES[0], "GIF", "is a .gif file"),
        ("é x.jpg.png", IMAGES[0], "PNG", "'é x.jpg.png' is there twice; rename it"),
        ("é x.jpg.png/b.png", IMAGES[0], "PNG", "lies in a folder that is a picture, too"),
        ("a" * 251 + ".jpg", IMAGES[0], "JPEG", "parts of 255 bytes at most; rename it"),
        ("t.png", np.dstack([IMAGES[0], IMAGES[0, ..., 0]]), "PNG", "is transparent"),
    ):
        put(folder, name, image, kind)
        refused(folder, match)
        (folder / name).unlink()
        if "/" in name:
            (folder / name).parent.rmdir()
    os.symlink(folder / "jpeg.png", os.fsencode(folder) + b"/\xff.png")
    refused(folder, "as PNG files, .*rename it")
    (folder.parent / "none").mkdir()
    refused(folder.parent / "none", "holds no pictures")


def listed(*names: bytes) -> bytes:
    """The meta of a folder of pictures of these names, none of them grey."""
    bits = bytes(-(-len(names) // 8))
    return b"\3\1" + zlib.compress(bits + b"".join(name + b"\0" for name in names))


@pytest.mark.parametrize(
    "names",
    [
        [b"/etc/a.png"], [b"a/../../b.png"], [b".bashrc.png"], [b"a.txt"], [b"a.png", b"a.png"],
        [b"a.png", b"a.png/b.png"], [b"\xff.png"], [b"a/" * 10_000_000 + b"a.png"],
    ],
)  # fmt: skip
def test_names_that_are_refused(names):
    with pytest.raises(ValueError, match=r"plain relative path|twice|a picture, too|utf-8"):
        pictures_io.check_meta(listed(*names), (len(names), 4, 6, 3))


def tiled(count: int, *sizes: tuple[int, int]) -> bytes:
    content = count.to_bytes(4, "little") + np.array(sizes, "<u4").tobytes() + b"\0a.png\0"
    return b"\3\2" + zlib.compress(content)


@pytest.mark.parametrize(
    ("meta", "shape"),
    [(b"", SHAPE), (b"\1\x20\0", SHAPE), (b"\1\x00", SHAPE), (b"\1\x28", SHAPE),
     (b"\1\x40", SHAPE), (b"\2\x20", SHAPE), (b"\3\1xyz", SHAPE),
     (listed(b"a.png")[:-1], (1, 4, 6, 3)), (listed(b"a.png") + b"x", (1, 4, 6, 3)),
     (listed(b"a.png"), (2, 4, 6, 3)), (listed(b"a.png", b"b.png"), (1, 4, 6, 3)),
     (tiled(1, (4, 4)), (1, 4, 4, 2)), (tiled(1, (4, 0)), (1, 4, 4, 3)),
     (tiled(1, (4, 5)), (1, 4, 4, 3)), (tiled(1, (4, 4)), (2, 4, 4, 3)),
     (tiled(2, (4, 4)), (1, 4, 4, 3)), (tiled(0), (1, 4, 4, 3)),
     (tiled(1, (2**32 - 1, 2**32 - 1)), (1, 4, 4, 3)),
     (listed(b"a.png"), (1, 4, 6, 2)), (b"\3\1" + zlib.compress(bytes(65 << 20)), SHAPE)],
)  # fmt: skip
def test_meta_that_is_refused(meta, shape):
    with pytest.raises(ValueError, match=r"known|layout|names|path|sizes"):
        pictures_io.check_meta(meta, shape)


def test_what_is_written_is_named_as_what_it_is(tmp_path):
    folder = listed(b"a.png"), (1, 4, 6, 3)
    for meta, shape, wrong, right in (
        (b"\1\x20", SHAPE, "x.JPG", "x.npy"),
        (*folder, "x.npy", "x.of"),
    ):
        with pytest.raises(UserError, match=f"{wrong} would be an? .*; name it so"):
            pictures_io.check_meta(meta, shape, tmp_path / wrong)
        assert pictures_io.check_meta(meta, shape, tmp_path / right)


def test_a_failing_write_leaves_nothing(folder, tmp_path, monkeypatch):
    came = [pictures_io.read(folder), pictures_io.of_array(IMAGES, "")]
    before = sorted(tmp_path.rglob("*"))

    def fails(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    for each in came:
        with pytest.raises(UserError, match="out can't be written: Input/output error"):
            pictures_io.write(each.meta, each.images, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
