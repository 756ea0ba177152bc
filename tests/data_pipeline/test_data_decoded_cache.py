"""The decoded copy on disk: never half-written, never silently wrong, seldom read in full."""

import os
import tracemalloc

import numpy as np
import pytest
from filelock import FileLock

from vdm_jax.data import decoded_cache, file_states
from vdm_jax.data.decoded_cache import Stream
from vdm_jax.data.image_data import fingerprint

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
TEST = RNG.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    copy = decoded_cache.folder(tmp_path / "d", "mine")
    extra = {"test_source": np.array(list("abcdefgh")), "train_label": np.arange(40) % 3}
    decoded_cache.write(copy, TRAIN, TEST, 256, extra, ["x", "y", "z"])
    return copy


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that are read in full from here on."""
    names = []
    honest = file_states.sha256
    monkeypatch.setattr(file_states, "sha256", lambda path: names.append(path.name) or honest(path))
    return names


def test_what_is_written_is_read_without_hashing_it(folder, hashed):
    data = decoded_cache.read(folder, "mine")
    assert hashed == []
    np.testing.assert_array_equal(data.train, TRAIN)
    np.testing.assert_array_equal(data.test, TEST)
    assert isinstance(data.train, np.memmap)
    np.testing.assert_array_equal(data.source["test"], list("abcdefgh"))
    np.testing.assert_array_equal(data.labels["train"], np.arange(40) % 3)
    assert data.labels["train"].dtype == np.int32
    assert (data.label_names, data.num_classes, data.levels) == (("x", "y", "z"), 3, 256)
    assert data.fingerprint == fingerprint(TRAIN, TEST, 256)
    assert folder.name == "mine-v2"  # copies of this format stay good


def test_a_touched_copy_is_hashed_once(folder, hashed):
    os.utime(folder / "train.npy", (1, 1))
    for read in (["train.npy"], []):
        assert decoded_cache.read(folder, "mine").fingerprint == fingerprint(TRAIN, TEST, 256)
        assert hashed == read
        hashed.clear()


def test_damage_is_named(folder, one_clear_line):
    what = f"the decoded copy of mine in {folder} is damaged"
    for name in ("train.npy", "test_source.npy"):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        os.utime(path, (1, 1))
        with one_clear_line(f"{what} .the content of {name} has changed.; delete that folder"):
            decoded_cache.read(folder, "mine")
        path.write_bytes(whole[:-10])
        with one_clear_line(f"{what} .{name} has {len(whole) - 10} bytes, not {len(whole)}"):
            decoded_cache.read(folder, "mine")
        path.unlink()
        with one_clear_line(f"{what} .*{name}"):
            decoded_cache.read(folder, "mine")
        path.write_bytes(whole)
    np.testing.assert_array_equal(decoded_cache.read(folder, "mine").train, TRAIN)
    for content in ("{", "[]", '{"files": {"train.npy": 1}}'):
        (folder / "meta.json").write_text(content)
        with one_clear_line(what):
            decoded_cache.read(folder, "mine")


def test_what_a_killed_writer_left_is_replaced_and_a_failing_one_leaves_nothing(
    tmp_path, monkeypatch
):
    partial = tmp_path / "copy.partial"
    partial.mkdir()
    (partial / "train.npy").write_bytes(b"half")
    decoded_cache.write(tmp_path / "copy", TRAIN, TEST, 256)
    np.testing.assert_array_equal(decoded_cache.read(tmp_path / "copy", "x").train, TRAIN)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        decoded_cache.write(tmp_path / "other", TRAIN, TEST, 256)
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "copy.lock", "other.lock"}


def test_the_first_of_two_writers_wins(folder, monkeypatch):
    before = (folder / "meta.json").read_text()
    entered = []
    monkeypatch.setattr(FileLock, "__enter__", lambda lock: entered.append(lock.lock_file))
    monkeypatch.setattr(FileLock, "__exit__", lambda *_: None)
    decoded_cache.write(folder, TRAIN[::-1], TEST, 256)
    assert (folder / "meta.json").read_text() == before
    assert entered == [f"{folder}.lock"]


def numbered(count: int, shape=(64, 64, 3)):
    """Yields blocks of 16 images that tell their own number, with labels."""
    for start in range(0, count, 16):
        numbers = np.arange(start, min(start + 16, count))
        images = np.broadcast_to(numbers[:, None, None, None] % 251, (len(numbers), *shape))
        yield images.astype(np.uint8), {"label": numbers % 7}


def test_a_stream_is_written_as_it_comes_and_never_held_whole(tmp_path):
    part = Stream("mine, train", None, (64, 64, 3), numbered(2001))
    tracemalloc.start()
    try:
        decoded_cache.write(tmp_path / "big", part, TEST, 256, {}, "abcdefg")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2001 * 64 * 64 * 3  # a block and what is hashed at a time (16 MiB), not the part
    data = decoded_cache.read(tmp_path / "big", "big")
    np.testing.assert_array_equal(data.train, np.concatenate([x for x, _ in numbered(2001)]))
    np.testing.assert_array_equal(data.labels["train"], np.arange(2001) % 7)
