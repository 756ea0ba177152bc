"""A folder of pictures: every image where it belongs, every unfit file named."""

import hashlib
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from vdm_jax.data import FolderOptions, load, picture_decoding, pictures_io, validation_split


def _image(number: int, height: int = 6, width: int = 5) -> np.ndarray:
    """An image that tells its own number."""
    image = np.full((height, width, 3), number, np.uint8)
    image[0, 0] = 0, number, 99
    return image


def _numbers(part: np.ndarray) -> list[int]:
    assert (part[:, 0, 0, ::2] == (0, 99)).all()
    return part[:, 0, 0, 1].tolist()


def _save(path, image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format="PNG", compress_level=0)


@pytest.fixture
def pictures(tmp_path):
    """A folder with train and test; image n lies at train/n.png, 100 + n at test/deep/n.PNG."""
    root = tmp_path / "pictures"
    for n in range(12):
        _save(root / "train" / f"{n}.png", _image(n))
    for n in range(4):
        _save(root / "test" / "deep" / f"{n}.PNG", _image(100 + n))
    return root


@pytest.fixture
def flat(tmp_path):
    """A folder of 60 images in two subfolders; image n is n.png."""
    root = tmp_path / "flat"
    for n in range(60):
        _save(root / _half(n) / f"{n}.png", _image(n))
    return root


def _half(n: int) -> str:
    return "even" if n % 2 == 0 else "odd"


@pytest.fixture
def open_folder(tmp_path):
    def load_it(path, class_labels=False, **options):
        where = {"path": path, "data_dir": tmp_path / "cache", "class_labels": class_labels}
        return load("folder", folder=FolderOptions(**options), **where)

    return load_it


@pytest.fixture
def refused(one_clear_line, open_folder):
    def check(match, *args, **kwargs):
        with one_clear_line(match):
            open_folder(*args, **kwargs)

    return check


def test_train_and_test_hold_their_pictures_to_the_pixel_in_the_order_of_their_hashes(
    pictures, open_folder, monkeypatch
):
    data = open_folder(pictures)
    order = sorted(range(12), key=lambda n: hashlib.sha256(f"{n}.png".encode()).hexdigest())
    np.testing.assert_array_equal(data.train, [_image(n) for n in order])
    assert sorted(_numbers(data.test)) == [100, 101, 102, 103]
    assert isinstance(data.train, np.memmap)
    assert (data.name, data.levels, data.event_shape) == ("folder:pictures", 256, (6, 5, 3))
    assert (data.labels, data.num_classes) == (None, 0)
    monkeypatch.setattr(picture_decoding, "read", lambda *_: pytest.fail("decoded again"))
    assert open_folder(pictures).fingerprint == data.fingerprint


def test_the_held_out_part_is_that_of_the_documented_hash(flat, open_folder):
    for held_out in (None, 0.4):
        data = open_folder(flat, held_out=held_out)
        hashes = [hashlib.sha256(f"{_half(n)}/{n}.png".encode()).hexdigest() for n in range(60)]
        wanted = {n for n in range(60) if int(hashes[n], 16) / 2**256 < (held_out or 0.1)}
        assert set(_numbers(data.test)) == wanted
        assert sorted(_numbers(data.train) + _numbers(data.test)) == list(range(60))


@pytest.mark.parametrize("change", ["renamed", "moved", "same size and time"])
def test_a_change_is_noticed(pictures, open_folder, change):
    before = open_folder(pictures)
    path = pictures / "train" / "3.png"
    stat = path.stat()
    wanted = set(range(12))
    if change == "renamed":
        path.rename(path.with_name("x.png"))
    elif change == "moved":
        path.rename(pictures / "test" / "3.png")
        wanted -= {3}
    else:
        _save(path, _image(13))
        wanted ^= {3, 13}
        assert path.stat().st_size == stat.st_size
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = open_folder(pictures)
    assert set(_numbers(after.train)) == wanted
    assert after.fingerprint != before.fingerprint or change == "renamed"


def test_a_picture_that_changes_meanwhile(pictures, open_folder, monkeypatch, refused):
    honest = picture_decoding.read

    def then_change(*arguments):
        _save(pictures / "train" / "3.png", _image(13))
        return honest(*arguments)

    monkeypatch.setattr(picture_decoding, "read", then_change)
    refused(f"{pictures} was changed while it was read; run again", pictures)


def test_other_files_are_counted_and_hidden_ones_passed_over(pictures, open_folder, capfd):
    for name in ("._3.png", ".git/3.png"):
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_bytes(b"no image")
    open_folder(pictures)
    assert capfd.readouterr().err == ""
    (pictures / "readme.txt").write_text("")
    (pictures / "train" / "list").write_text("")
    open_folder(pictures)
    said = f"vdm_jax: 2 entries of {pictures} are left out: no images by their names, or folders "
    said += "for thumbnails or removed files (the first is readme.txt)\n"
    assert said == capfd.readouterr().err


@pytest.mark.parametrize(
    "place",
    ["@eaDir", "train/@eaDir/3.png", ".thumbnails", "__MACOSX", "lost+found", "$RECYCLE.BIN"],
)
def test_thumbnails_and_removed_files_are_left_out_and_counted(pictures, open_folder, capfd, place):
    wanted = open_folder(pictures)
    _save(pictures / place / "SYNOPHOTO_THUMB_M.png", _image(5, 2, 3))
    (pictures / place / "thumb.gif").write_bytes(b"of a kind that isn't read")
    data = open_folder(pictures)
    assert data.fingerprint == wanted.fingerprint
    said = capfd.readouterr().err
    assert f"1 entries of {pictures} are left out: " in said and place.partition("/")[0] in said
    assert len(pictures_io.read(pictures).images) == 16


def test_class_labels_are_the_subfolders(flat, open_folder):
    data = open_folder(flat, class_labels=True)
    assert data.label_names == ("even", "odd")
    for part in ("train", "test"):
        numbers = np.array(_numbers(getattr(data, part)))
        np.testing.assert_array_equal(data.labels[part], numbers % 2)
    assert open_folder(flat).labels is None
    assert data.fingerprint == open_folder(flat).fingerprint
    split = validation_split(data, 20)
    np.testing.assert_array_equal(split.labels["test"], np.array(_numbers(split.test)) % 2)
    assert 0 < split.labels["test"].mean() < 1  # the last 20 are not all of one class


def test_class_labels_below_train_and_test(pictures, open_folder, one_clear_line):
    with one_clear_line(r"train/[0-9]+.png lies in no class: with class_labels each image must"):
        open_folder(pictures, class_labels=True)
    shutil.rmtree(pictures / "train")
    for n in range(8):
        name = "train", ("deep", "wide")[n % 2], "deeper", f"{n}.png"
        _save(pictures.joinpath(*name), _image(n))
    data = open_folder(pictures, class_labels=True)
    np.testing.assert_array_equal(data.labels["train"], np.array(_numbers(data.train)) % 2)
    assert not data.labels["test"].any() and data.label_names == ("deep", "wide")
    _save(pictures / "test" / "c" / "1.png", _image(1))
    with one_clear_line("class 'c' of folder:pictures has test images but none to train on"):
        open_folder(pictures, class_labels=True)


@pytest.mark.parametrize(
    ("size", "fit", "shape", "enlarged"),
    [("4", "crop", (4, 4), 0), ("3x8", "crop", (3, 8), 16), ((7, 5), "resize", (7, 5), 16)],
)
def test_sizes_and_grey(pictures, open_folder, capfd, size, fit, shape, enlarged):
    _save(pictures / "train" / "wide.png", _image(7, 9, 30))
    data = open_folder(pictures, size=size, fit=fit, channels=1)
    assert (len(data.train), data.event_shape) == (13, (*shape, 1))
    by = "x".join(map(str, shape))
    said = f"vdm_jax: {enlarged} images of {pictures} are smaller than {by} and were enlarged\n"
    assert capfd.readouterr().err == said * bool(enlarged)


def test_that_grey_was_tripled_is_said_at_each_start(tmp_path, open_folder, capfd):
    for n in range(40):
        _save(tmp_path / "grey" / f"{n}.png", _image(n)[..., 1])
    for channels, told in ((3, 1), (3, 1), (1, 0)):
        assert open_folder(tmp_path / "grey", channels=channels).event_shape == (6, 5, channels)
        said = f"images of {tmp_path / 'grey'} that were looked at are grey: each is taken as three"
        assert capfd.readouterr().err.count(said) == told


def test_what_is_unfit_in_a_folder_is_named(pictures, open_folder, tmp_path, refused):
    refused(r"/[0-9]+.png is 6x5 but size= is 4x4 .*fit='crop' or 'resize'", pictures, size=4)
    assert open_folder(pictures, size=(6, 5)).event_shape == (6, 5, 3)
    _save(pictures / "test" / "other.png", _image(3, 5, 6))
    refused(r"test/other.png is 5x6 but .*train/[0-9]+.png is 6x5 .height x width.", pictures)
    (pictures / "test" / "other.png").unlink()
    cut = (pictures / "train" / "3.png").read_bytes()[:-20]
    for name, content, match in (
        ("bad.jpg", b"text", "is no PNG, JPEG or WebP image"),
        ("bad.webp", cut, "is broken"),
        ("bad.TIFF", b"", "is a .tiff file; wanted only .png, .jpg, .jpeg, .webp: convert it"),
    ):
        path = pictures / "test" / name
        path.write_bytes(content)
        refused(f"{path} {match}", pictures)
        path.unlink()
    assert len(list(tmp_path.glob("cache/decoded/folder-*/"))) == 1
    refused("held_out=0.2 is for folders without train and test", pictures, held_out=0.2)
    (pictures / "train" / "gone.png").symlink_to("nowhere")
    refused("train/gone.png can't be read: .*No such file", pictures)
    _save(pictures / "val" / "1.png", _image(1))
    refused("val/1.png lies beside train and test", pictures)
    shutil.rmtree(pictures / "val")
    shutil.rmtree(pictures / "test")
    refused("has a subfolder 'train' but no 'test'; give both", pictures)
    (pictures / "test").mkdir()
    refused("test holds no images", pictures)


def test_folders_without_a_picture_to_test_on(open_folder, tmp_path, one_clear_line, refused):
    with one_clear_line("folder needs path="):
        load("folder")
    refused("nowhere is not there; path= must name a folder of", tmp_path / "nowhere")
    (tmp_path / "empty" / "below").mkdir(parents=True)
    refused("empty holds no images; wanted .png, .jpg, .jpeg, .webp in it", tmp_path / "empty")
    _save(tmp_path / "single" / "1.png", _image(1))
    refused("1.png is a file; path= must name a folder of", tmp_path / "single" / "1.png")
    refused("of the 1 images in .*single [01] would be test images", tmp_path / "single")
    os.mkfifo(tmp_path / "single" / "pipe.png")
    refused("pipe.png is neither file nor folder", tmp_path / "single")


def test_a_link_to_a_folder_is_followed_but_not_in_a_circle(pictures, open_folder, refused):
    before = open_folder(pictures)
    (pictures / "train").rename(pictures.parent / "elsewhere")
    (pictures / "train").symlink_to(pictures.parent / "elsewhere")
    assert open_folder(pictures).fingerprint == before.fingerprint
    (pictures / "test" / "round").symlink_to(pictures)
    refused("test/round is a link to a folder that it lies in; remove it", pictures)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fit": "stretch"}, "fit='stretch' is unknown; choose one of none, crop, resize"),
        ({"fit": "crop"}, "fit='crop' needs a size"),
        ({"channels": 4}, r"channels=4 must be 3 \(RGB\) or 1 \(grey\)"),
        ({"size": 0}, "size=0 is no size"),
        ({"size": "4x"}, "size='4x' is no size"),
        ({"size": "9" * 5000}, "is no size"),
        ({"size": (4, 4, 3)}, r"size=\(4, 4, 3\) is no size"),
        ({"size": 10**5}, "more than 67,108,864 pixels"),
        ({"held_out": 0}, "held_out=0 must lie between 0 and 1"),
    ],
)
def test_unfit_options(flat, open_folder, refused, options, match):
    refused(match, flat, **options)


def _numbered(height: int, width: int, first: int = 0) -> np.ndarray:
    """A picture of 4x4 tiles that each tell their number, and of 200 where no tile fits."""
    picture = np.full((height, width, 3), 200, np.uint8)
    for n in range((height // 4) * (width // 4)):
        row, column = divmod(n, width // 4)
        picture[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = first + n
    return picture


def test_tiles_are_cut_row_by_row_and_belong_to_their_picture(tmp_path, open_folder):
    root = tmp_path / "sizes"
    _save(root / "train" / "a.png", _numbered(9, 15))
    _save(root / "train" / "b.png", _numbered(4, 4, 50))
    _save(root / "test" / "c.png", _numbered(14, 6, 60))
    data = open_folder(root, size=4, fit="tiles")
    assert data.train.shape == (7, 4, 4, 3)
    assert (data.train == data.train[:, :1, :1, :1]).all()
    groups = [data.train[data.source["train"] == n, 0, 0, 0].tolist() for n in range(2)]
    assert sorted(groups) == [[0, 1, 2, 3, 4, 5], [50]]
    assert data.test[:, 0, 0, 0].tolist() == [60, 61, 62]
    assert data.source["test"].tolist() == [0, 0, 0]


def test_tiles_of_one_picture_have_its_class(tmp_path, open_folder):
    root = tmp_path / "classes"
    for part in ("train", "test"):
        _save(root / part / "cat" / "a.png", _numbered(8, 4))
        _save(root / part / "dog" / "b.png", _numbered(4, 4))
    data = open_folder(root, class_labels=True, size=4, fit="tiles")
    assert sorted(data.label_names[n] for n in data.labels["train"]) == ["cat", "cat", "dog"]


def test_a_picture_without_a_tile_and_tiles_without_a_size_are_refused(tmp_path, refused):
    root = tmp_path / "small"
    _save(root / "train" / "a.png", _numbered(8, 8))
    _save(root / "test" / "b.png", _numbered(8, 3))
    refused("b.png is 8x3 .* no tile of 4x4", root, size=4, fit="tiles")
    refused("fit='tiles' needs a size", root, fit="tiles")


def test_the_photographs_of_the_repository_are_read_by_photograph(tmp_path):
    data = load("photos32", data_dir=tmp_path)
    assert data.train.shape == (4096, 32, 32, 3) and data.test.shape == (512, 32, 32, 3)
    assert sorted(np.bincount(data.source["test"])) == [31, 112, 119, 122, 128]
    assert len(np.bincount(data.source["train"])) == 13
