"""The user's own arrays, from an .npz file."""

import os

import numpy as np
import pytest

from vdm_jax.data import file_states, load, validation_split
from vdm_jax.data.image_data import fingerprint


def _images(count: int, shape=(4, 4, 3), levels=256, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels, (count, *shape), dtype=np.uint8)


@pytest.fixture
def write(tmp_path):
    def save(**arrays):
        np.savez_compressed(tmp_path / "mine.npz", **arrays)
        return tmp_path / "mine.npz"

    return save


@pytest.fixture
def load_mine(tmp_path):
    return lambda path, **kwargs: load("arrays", path=path, data_dir=tmp_path / "d", **kwargs)


@pytest.fixture
def refused(one_clear_line, load_mine):
    def check(match, *args, **kwargs):
        with one_clear_line(match):
            load_mine(*args, **kwargs)

    return check


def test_arrays_come_with_their_groups_and_classes(write, load_mine):
    train, test = _images(5), _images(2, seed=1)
    labels = {"train_label": np.array([2, 0, 2, 5, 0]), "test_label": np.array([5, 2], np.uint8)}
    groups = {"train_source": np.array([3, 3, 7, 7, 7]), "test_source": ["a", "b"]}
    data = load_mine(write(train=train, test=test, **labels, **groups), class_labels=True)
    np.testing.assert_array_equal(data.train, train)
    np.testing.assert_array_equal(data.test, test)
    for part in ("train", "test"):
        np.testing.assert_array_equal(data.labels[part], labels[f"{part}_label"])
        np.testing.assert_array_equal(data.source[part], groups[f"{part}_source"])
    assert (data.num_classes, data.label_names[5]) == (6, "5")
    assert isinstance(data.train, np.memmap)
    assert (data.name, data.levels, data.event_shape) == ("arrays:mine.npz", 256, (4, 4, 3))
    plain = load_mine(write(train=train, test=test, notes=np.array(3.0)))
    assert plain.fingerprint == data.fingerprint == fingerprint(train, test, 256)
    assert (plain.labels, plain.source, plain.conditions) == (None, None, None)
    assert (data.condition, plain.condition) == ((6, 0), (0, 0))


def test_conditions_of_any_shape_come_as_rows_of_float32_and_stay_with_their_images(
    write, load_mine
):
    train = np.arange(20).reshape(5, 2, 2)
    conditions = {"train_condition": train, "test_condition": train[3:] / 2}
    data = load_mine(write(train=_images(5), test=_images(2), **conditions))
    for part, rows in (("train", train), ("test", train[3:] / 2)):
        np.testing.assert_array_equal(data.given(part), rows.reshape(-1, 4))
        assert data.given(part).dtype == np.float32
        assert data.examples(part)["conditioning"] is data.conditions[part]
    assert data.condition == (0, 4) and data.condition.size == 4
    np.testing.assert_array_equal(data.turns(), data.given("test"))
    held = validation_split(data, 2)
    np.testing.assert_array_equal(held.given("test"), train[3:].reshape(2, 4))
    np.testing.assert_array_equal(held.given("train"), train[:3].reshape(3, 4))


def test_grey_arrays_gain_a_channel_and_other_integers_are_taken(write, load_mine, refused):
    train = _images(5, (3, 2), levels=9)
    path = write(train=np.asfortranarray(train.astype(">u2")), test=train[:2])
    data = load_mine(path, levels=9)
    np.testing.assert_array_equal(data.train, train[..., None])
    assert (data.train.dtype, data.event_shape, data.levels) == (np.uint8, (3, 2, 1), 9)
    refused(r"holds the value 8; wanted .* \[0, 8\): .*set levels=", path, levels=8)


def test_a_changed_file_is_noticed_even_one_of_the_same_size_and_time(tmp_path, load_mine):
    path = tmp_path / "mine.npz"
    train, test = _images(5), _images(2)
    np.savez(path, train=train, test=test)
    stat = path.stat()
    np.testing.assert_array_equal(load_mine(path).train, train)
    np.savez(path, train=train[::-1], test=test)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    np.testing.assert_array_equal(load_mine(path).train, train[::-1])
    assert len(list((tmp_path / "d" / "decoded").glob("npz-*-levels256-v2"))) == 2


def test_a_file_just_written_is_taken_once_its_time_tells_it_from_a_later_one(
    write, load_mine, monkeypatch
):
    waited = []
    monkeypatch.setattr(file_states, "AT_REST_S", 2.0)
    monkeypatch.setattr(file_states.time, "sleep", waited.append)
    path = write(train=_images(2), test=_images(1))
    load_mine(path)
    assert 1.0 < waited[0] <= 2.0
    monkeypatch.setattr(file_states.time, "time", lambda: path.stat().st_ctime + 3)
    load_mine(path)
    assert waited[-1] == 0.0


def test_a_file_that_changes_meanwhile(write, load_mine, monkeypatch, one_clear_line):
    states = iter("ab")
    monkeypatch.setattr(file_states, "unread", lambda paths: next(states))
    with one_clear_line("mine.npz was changed while it was read; run again"):
        load_mine(write(train=_images(2), test=_images(1)))


TWO = {"train": _images(2), "test": _images(2)}
LABELS = {"train_label": [0, 1], "test_label": [0, 1]}
TOLD = TWO | {"train_condition": np.ones((2, 3)), "test_condition": np.ones((2, 3))}


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"train": _images(2)}, "no array 'test'; found train; wanted an .npz"),
        (
            TWO | {"train_conditions": [0, 1]},
            "array 'train_conditions', which means nothing; known",
        ),
        (TWO | {"train": _images(2) / 255}, "'train' in .* holds float64 .*quantise"),
        (TWO | {"train": _images(0)}, r"'train' in .* has shape \(0, 4, 4, 3\).*one image"),
        (TWO | {"test": _images(2, (4, 5, 3))}, r"'train': \(4, 4, 3\), 'test': \(4, 5, 3\)}"),
        (TWO | {"train": np.full((2, 4, 4, 3), 256)}, r"holds the value 256; .*\[0, 256\)"),
        (TWO | {"train": np.full((2, 4, 4, 3), -3)}, "holds the value -3; wanted"),
        (TWO | {"test": _images(2, (4,))}, r"'test' in .* has shape \(2, 4\); wanted"),
        (TWO | {"test_source": np.arange(3)}, r"'test_source' in .* has shape \(3,\); .*, \(2,\)"),
        (TWO | {"test_label": [0, 1]}, "{'test_label': ..}; give 'train_label' and"),
        (TWO | LABELS | {"train_label": ["a", "b"]}, "holds <U1 values; wanted .*np.unique"),
        (TWO | LABELS | {"train_label": [0, -1]}, "'train_label' in .* holds the value -1"),
        (TWO | LABELS | {"train_label": [0, 100_000]}, "'train_label' in .* the value 100000"),
        (
            TOLD | {"train_condition": np.ones((3, 3))},
            r"shape \(3, 3\); wanted a condition for",
        ),
        (
            TOLD | {"train_condition": np.float32(1)},
            r"'train_condition' in .* shape \(\);",
        ),
        (
            TOLD | {"test_condition": np.ones((2, 2))},
            r"'train_condition': \(3,\), 'test_condition': \(2,\)};",
        ),
        (TOLD | {"test_condition": np.ones((2, 0))}, r"is float64 \(2, 0\); wanted numbers \[n, "),
        (TOLD | {"test_condition": [["a"], ["b"]]}, r"is <U1 \(2, 1\); wanted numbers"),
        (
            TOLD | {"test_condition": [[1.0] * 3, [1, 2, np.nan]]},
            "number in row 1 that isn't",
        ),
        (
            TOLD | {"train_condition": [[1e39] * 3, [1] * 3]},
            "in row 0 that isn't finite as a",
        ),
        (TWO | {"test_condition": [1, 2]}, "give 'train_condition' and"),
        (TWO | {"train": np.array([None, {}])}, "array 'train' can't be read .*Object arrays"),
    ],
)
def test_unfit_arrays(write, load_mine, refused, arrays, match):
    refused(match, write(**arrays))


def test_unfit_files(tmp_path, load_mine, one_clear_line, refused):
    with one_clear_line("arrays needs path="):
        load("arrays")
    refused("nowhere.npz is not there; path= must name an .npz", tmp_path / "nowhere.npz")
    refused("is a folder; path= must name", tmp_path)
    path = tmp_path / "bad.npz"
    np.savez(path, **TWO)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused("bad.npz: it can't be read .*wanted an .npz", path)
    at = whole.index(TWO["train"].tobytes()) + 50
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    refused("bad.npz: array 'train' can't be read .*CRC", path)
