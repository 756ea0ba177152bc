"""`load` for the embedded digits and for the user's own arrays; the validation split."""

import hashlib
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdm_jax.data import DataError, ImageData, load, validation_split
from vdm_jax.data.images import fingerprint


def _images(n: int, shape=(4, 4, 3), levels: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels, (n, *shape), dtype=np.uint8)


@pytest.fixture
def write(tmp_path):
    """Writes an .npz of the given arrays and gives its path."""

    def save(**arrays):
        path = tmp_path / "mine.npz"
        np.savez_compressed(path, **arrays)
        return path

    return save


@pytest.fixture
def load_mine(tmp_path):
    def load_it(path, **kwargs):
        return load("arrays", path=path, data_dir=tmp_path / "cache", **kwargs)

    return load_it


def test_digits_are_those_of_sklearn_in_the_documented_split():
    from sklearn.datasets import load_digits

    data = load("digits")
    order = np.random.RandomState(0).permutation(1797)
    published = load_digits().images[order][..., None]
    np.testing.assert_array_equal(data.train, published[:1437])
    np.testing.assert_array_equal(data.test, published[1437:])
    assert data.train.dtype == data.test.dtype == np.uint8
    assert (data.name, data.levels, data.event_shape) == ("digits", 17, (8, 8, 1))
    assert (data.train.max(), data.test.max()) == (16, 16)
    assert data.source is None


def test_the_labels_of_digits_are_those_of_sklearn():
    from sklearn.datasets import load_digits

    data = load("digits")
    published = load_digits().target[np.random.RandomState(0).permutation(1797)]
    np.testing.assert_array_equal(data.labels["train"], published[:1437])
    np.testing.assert_array_equal(data.labels["test"], published[1437:])
    assert data.label_names == tuple("0123456789")
    assert data.fingerprint == fingerprint(data.train, data.test, 17)  # of the pixels alone


@pytest.mark.parametrize("name", ["digits", "digits_binary"])
def test_digits_can_not_be_changed_by_a_caller(name):
    for part in (load(name).train, load(name).test):
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 0


def test_binary_digits_are_the_digits_in_black_and_white():
    """1 from half of the brightest level on, in the same order, with the same classes."""
    grey, data = load("digits"), load("digits_binary", class_labels=True)
    for part in ("train", "test"):
        there, here = getattr(grey, part), getattr(data, part)
        np.testing.assert_array_equal(here, np.where(2 * there.astype(int) >= 16, 1, 0))
        assert here.dtype == np.uint8
        np.testing.assert_array_equal(data.labels[part], grey.labels[part])
    assert (data.name, data.levels, data.event_shape) == ("digits_binary", 2, (8, 8, 1))
    assert data.fingerprint == fingerprint(data.train, data.test, 2) != grey.fingerprint
    # Neither part is nearly all of one colour, and the grey ones stay as they were.
    assert 0.3 < data.train.mean() < 0.5 and grey.train.max() == 16


def test_binary_digits_take_no_other_levels_and_no_path():
    with pytest.raises(DataError, match="levels=17 can't be set for 'digits_binary', which has 2"):
        load("digits_binary", levels=17)
    assert load("digits_binary", levels=2).levels == 2
    with pytest.raises(DataError, match="not for 'digits_binary'; leave it out"):
        load("digits_binary", path="x.npz")


def test_fingerprint_is_the_documented_sha256():
    train, test = _images(3), _images(2, seed=1)
    header = json.dumps({"levels": 256, "test": test.shape, "train": train.shape})
    wanted = hashlib.sha256(header.encode() + train.tobytes() + test.tobytes()).hexdigest()
    assert fingerprint(train, test, 256) == wanted


@given(st.sampled_from(["pixel", "order", "levels", "shape", "parts"]))
def test_fingerprint_tells_contents_apart(change):
    train, test = _images(6), _images(4, seed=1)
    before = fingerprint(train, test, 256)
    levels = 256
    if change == "pixel":
        train[2, 1, 1, 0] ^= 1
    elif change == "order":
        train = train[::-1]
    elif change == "levels":
        levels = 255
    elif change == "shape":
        train, test = train.reshape(6, 2, 8, 3), test.reshape(4, 2, 8, 3)
    else:
        train, test = np.concatenate([train, test[:1]]), test[1:]
    assert fingerprint(train, test, levels) != before


def test_arrays_round_trip(write, load_mine):
    train, test = _images(9), _images(4, seed=1)
    data = load_mine(write(train=train, test=test))
    np.testing.assert_array_equal(data.train, train)
    np.testing.assert_array_equal(data.test, test)
    assert isinstance(data.train, np.memmap)
    assert (data.name, data.levels, data.event_shape) == ("arrays:mine.npz", 256, (4, 4, 3))
    assert data.fingerprint == fingerprint(train, test, 256)
    assert data.source is None


def test_digits_under_another_name_have_the_same_fingerprint(write, load_mine):
    digits = load("digits")
    data = load_mine(write(train=digits.train, test=digits.test), levels=17)
    assert data.fingerprint == digits.fingerprint


def test_grey_arrays_gain_a_channel_and_other_integers_are_taken(write, load_mine):
    train = _images(5, (3, 2), levels=9)
    data = load_mine(write(train=train.astype(np.int64), test=train[:2]), levels=9)
    np.testing.assert_array_equal(data.train, train[..., None])
    assert data.train.dtype == np.uint8
    assert data.event_shape == (3, 2, 1)


def test_group_labels_come_along(write, load_mine):
    labels = np.array([3, 3, 7, 7, 7])
    path = write(train=_images(5), test=_images(2), train_source=labels, test_source=["a", "b"])
    source = load_mine(path).source
    np.testing.assert_array_equal(source["train"], labels)
    assert list(source["test"]) == ["a", "b"]


def test_class_labels_come_along(write, load_mine):
    images = {"train": _images(5), "test": _images(2, seed=1)}
    train, test = np.array([2, 0, 2, 5, 0], np.int64), np.array([5, 2], np.uint8)
    without = load_mine(write(**images))
    data = load_mine(write(**images, train_label=train, test_label=test))
    np.testing.assert_array_equal(data.labels["train"], train)
    np.testing.assert_array_equal(data.labels["test"], test)
    assert data.num_classes == 6
    assert data.fingerprint == without.fingerprint
    assert (without.labels, without.num_classes) == (None, 0)


def test_data_dir_from_the_environment(write, tmp_path, monkeypatch):
    monkeypatch.setenv("VDM_JAX_DATA", str(tmp_path / "elsewhere"))
    load("arrays", path=write(train=_images(2), test=_images(1)))
    assert list((tmp_path / "elsewhere" / "decoded").glob("arrays-*-levels256-*/train.npy"))


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"train": _images(2)}, "no array 'test'; found train; wanted an .npz"),
        ({"x": _images(2)}, "no array 'train'; found x; wanted an .npz"),
        ({"train": _images(2) / 255, "test": _images(2)}, "'train' holds float64 .*quantise"),
        ({"train": _images(2), "test": _images(2) > 9}, "'test' holds bool values"),
        ({"train": _images(2), "test": [["a"]]}, "'test' holds <U1 values"),
        ({"train": _images(0), "test": _images(2)}, r"'train' has shape \(0, 4, 4, 3\).*one image"),
        ({"train": _images(2), "test": _images(2, (4,))}, r"'test' has shape \(2, 4\); wanted"),
        (
            {"train": _images(2), "test": _images(2, (4, 5, 3))},
            r"'train' in .* are \(4, 4, 3\) but those of 'test' \(4, 5, 3\)",
        ),
        (
            {"train": np.full((2, 4, 4, 3), 256), "test": _images(2)},
            r"'train' holds the value 256, outside \[0, 256\)",
        ),
        (
            {"train": np.full((2, 4, 4, 3), -3), "test": _images(2)},
            r"'train' holds the value -3, outside",
        ),
        (
            {"train": _images(2), "test": _images(2), "test_source": np.arange(3)},
            r"'test_source' in .* has shape \(3,\); wanted one label for each image of 'test', \(2",
        ),
        (
            {"train": _images(2), "test": _images(2), "test_label": np.arange(2)},
            "has 'test_label' but no 'train_label'; give class labels for both",
        ),
        (
            {
                "train": _images(2),
                "test": _images(2),
                "train_label": [0, 1],
                "test_label": [0, 1, 2],
            },
            r"'test_label' in .* has shape \(3,\); wanted one label for each image of 'test', \(2",
        ),
        (
            {
                "train": _images(2),
                "test": _images(2),
                "train_label": ["cat", "dog"],
                "test_label": [0, 1],
            },
            "'train_label' in .* holds <U3 values; wanted integers .*np.unique",
        ),
        (
            {
                "train": _images(2),
                "test": _images(2),
                "train_label": [0, -1],
                "test_label": [0, 1],
            },
            "'train_label' in .* holds the value -1, outside",
        ),
        (
            {"train": np.array([None, {}]), "test": _images(2)},
            "array 'train' in .* can't be read .*plain numbers",
        ),
    ],
)
def test_unfit_arrays(write, load_mine, one_clear_line, arrays, match):
    with one_clear_line(match):
        load_mine(write(**arrays))


def test_a_value_beyond_the_levels(write, load_mine, one_clear_line):
    path = write(train=np.full((1, 2, 2), 17, np.uint8), test=np.zeros((1, 2, 2), np.uint8))
    with one_clear_line(r"'train' holds the value 17, outside \[0, 17\); set levels="):
        load_mine(path, levels=17)
    assert load_mine(path, levels=18).levels == 18


def test_unfit_files(tmp_path, write, load_mine, one_clear_line):
    with one_clear_line("arrays needs path="):
        load("arrays")
    with one_clear_line("nowhere.npz is not there; path= must name an .npz"):
        load_mine(tmp_path / "nowhere.npz")
    with one_clear_line("is a folder; path= must name"):
        load_mine(tmp_path)
    whole = write(train=_images(9), test=_images(3))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:-100])
    with one_clear_line("cut.npz is no .npz file, or one cut short"):
        load_mine(cut)
    single = tmp_path / "single.npz"
    with single.open("wb") as file:
        np.save(file, _images(2))
    with one_clear_line("single.npz is no .npz file"):
        load_mine(single)


def test_a_damaged_member(tmp_path, load_mine, one_clear_line):
    buffer = io.BytesIO()
    np.savez(buffer, train=_images(9), test=_images(3))
    content = bytearray(buffer.getvalue())
    content[300] ^= 255  # a pixel of 'train'; the member's CRC no longer agrees
    path = tmp_path / "damaged.npz"
    path.write_bytes(content)
    with one_clear_line("array 'train' in .*damaged.npz can't be read .*CRC"):
        load_mine(path)


def test_unfit_arguments(tmp_path, write, one_clear_line):
    with one_clear_line(
        "data set 'imagenet' is unknown; choose one of digits, digits_binary, arrays, folder, cif"
    ):
        load("imagenet")
    with one_clear_line("path='x.npz' is for 'arrays' and 'folder', not for 'digits'"):
        load("digits", path="x.npz")
    with one_clear_line("levels=16 can't be set for 'cifar10', which has 256"):
        load("cifar10", levels=16)
    path = write(train=_images(2), test=_images(1))
    for levels in (1, 257, 2.5, True):
        with one_clear_line(f"levels={levels} must"):
            load("arrays", path=path, levels=levels)
    (tmp_path / "file").write_text("not a folder")
    with one_clear_line("arrays can't be kept in data_dir=.*choose another data_dir"):
        load("arrays", path=path, data_dir=tmp_path / "file")


def _data() -> ImageData:
    train, test = _images(10), _images(4, seed=1)
    source = {"train": np.arange(10), "test": np.arange(4)}
    labels = {"train": np.arange(10) % 3, "test": np.arange(4) % 3}
    digest = fingerprint(train, test, 256)
    return ImageData("mine", train, test, 256, digest, source, labels, ("a", "b", "c"))


@given(st.integers(1, 9))
def test_validation_split(count):
    data = _data()
    split = validation_split(data, count)
    np.testing.assert_array_equal(split.train, data.train[: 10 - count])
    np.testing.assert_array_equal(split.test, data.train[10 - count :])
    np.testing.assert_array_equal(split.source["test"], np.arange(10 - count, 10))
    np.testing.assert_array_equal(split.source["train"], np.arange(10 - count))
    np.testing.assert_array_equal(split.labels["test"], np.arange(10 - count, 10) % 3)
    np.testing.assert_array_equal(split.labels["train"], np.arange(10 - count) % 3)
    assert split.label_names == data.label_names
    assert split.name == f"mine:validation{count}"
    assert split.levels == data.levels
    assert split.fingerprint == validation_split(_data(), count).fingerprint
    others = {validation_split(data, other).fingerprint for other in range(1, 10) if other != count}
    assert split.fingerprint not in {data.fingerprint} | others


@pytest.mark.parametrize("count", [0, -1, 10, 11])
def test_validation_split_needs_images_on_both_sides(one_clear_line, count):
    with one_clear_line(rf"count={count} of the 10 training images of mine .* count in 1..9"):
        validation_split(_data(), count)


def test_validation_split_needs_a_count(one_clear_line):
    with one_clear_line("count=0.1 is no whole number"):
        validation_split(_data(), 0.1)
