"""`load` for the embedded digits, and what it refuses of its arguments."""

import pwd

import numpy as np
import pytest

from vdm_jax.data import FolderOptions, load
from vdm_jax.data.image_data import fingerprint


def test_digits_are_the_published_ones_in_the_documented_split():
    from sklearn.datasets import load_digits

    published, data = load_digits(), load("digits", class_labels=True)
    order = np.random.RandomState(0).permutation(1797)
    for part, rows in (("train", order[:1437]), ("test", order[1437:])):
        np.testing.assert_array_equal(getattr(data, part)[..., 0], published.images[rows])
        np.testing.assert_array_equal(data.labels[part], published.target[rows])
    assert (data.name, data.levels, data.event_shape) == ("digits", 17, (8, 8, 1))
    assert (data.train.dtype, data.num_classes) == (np.uint8, 10)
    # The number that the project's results were measured on; nothing may change it.
    assert data.fingerprint == fingerprint(data.train, data.test, 17)
    assert data.fingerprint.startswith("1d1ab8e0737155df")


def test_binary_digits_are_the_digits_in_black_and_white():
    """1 from half of the brightest level on, in the same order, with the same classes."""
    grey, data = load("digits"), load("digits_binary", class_labels=True, levels=2)
    for part in ("train", "test"):
        there, here = getattr(grey, part), getattr(data, part)
        np.testing.assert_array_equal(here, np.where(2 * there.astype(int) >= 16, 1, 0))
        np.testing.assert_array_equal(data.labels[part], grey.labels[part])
        with pytest.raises(ValueError, match="read-only"):
            here[0] = 0
    assert (data.name, data.levels, data.train.dtype) == ("digits_binary", 2, np.uint8)
    assert data.fingerprint == fingerprint(data.train, data.test, 2) != grey.fingerprint
    assert grey.train.max() == 16  # left as they were


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("imagenet", {}, "'imagenet' is unknown; choose one of digits, digits_binary, photos32"),
        ("digits", {"path": "x"}, "path='x' is for arrays and folder, not 'digits'"),
        ("cifar10", {"levels": 16}, "levels=16 can't be set for 'cifar10', which has 256"),
        ("digits_binary", {"levels": 17}, "levels=17 can't be set for 'digits_binary', .* has 2"),
        ("arrays", {"path": "x", "levels": 1}, "levels=1 must"),
        ("arrays", {"path": "x", "levels": 257}, "levels=257 must"),
        ("digits", {"folder": FolderOptions(size=4)}, "size=4 is for 'folder', not for 'digits'"),
        ("arrays", {"path": "~nobody-of-this-name/x"}, "path=.* can't be a path"),
        ("mnist", {"manual_dir": "n" * 5000}, "manual_dir=.* can't be a path"),
    ],
)
def test_unfit_arguments(one_clear_line, name, arguments, match):
    with one_clear_line(match):
        load(name, **arguments)


def test_who_has_no_home_needs_none_for_the_digits(monkeypatch, one_clear_line):
    """A user without an entry in the list of users, as in many containers."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "VDM_JAX_DATA"):
        monkeypatch.delenv(name, raising=False)
    assert load("digits").levels == 17
    with one_clear_line("there is no home directory to keep data in: set VDM_JAX_DATA=DIR"):
        load("cifar10")


def test_data_dir_from_the_environment_and_one_that_is_none(tmp_path, monkeypatch, one_clear_line):
    np.savez(tmp_path / "x.npz", train=np.zeros((2, 3, 3), int), test=np.zeros((1, 3, 3), int))
    monkeypatch.setenv("VDM_JAX_DATA", str(tmp_path / "elsewhere"))
    load("arrays", path=tmp_path / "x.npz")
    assert list((tmp_path / "elsewhere" / "decoded").glob("npz-*-levels256-*/train.npy"))
    (tmp_path / "file").write_text("not a folder")
    with one_clear_line("arrays can't be kept in data_dir=.*choose another data_dir"):
        load("arrays", path=tmp_path / "x.npz", data_dir=tmp_path / "file")
