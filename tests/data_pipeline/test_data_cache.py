"""The decoded copy on disk: never half-written, never silently wrong, seldom read in full."""

import json
import os
import shutil
import time
import tracemalloc

import numpy as np
import pytest

from vdm_jax.data import cache, load, seen, stream
from vdm_jax.data.images import fingerprint

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
TEST = RNG.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, train=TRAIN, test=TEST, test_source=np.arange(8))
    return path


@pytest.fixture
def open_data(npz, tmp_path):
    return lambda: load("arrays", path=npz, data_dir=tmp_path / "d")


@pytest.fixture
def folder(open_data, tmp_path):
    """The decoded copy of `npz`."""
    open_data()
    (found,) = (tmp_path / "d" / "decoded").glob("arrays-*")
    return found


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that are read in full from here on."""
    names = []
    honest = seen.sha256

    def spy(path):
        names.append(path.name)
        return honest(path)

    monkeypatch.setattr(seen, "sha256", spy)
    return names


def _age(path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_second_start_reads_no_pixels(npz, open_data, folder, hashed):
    _age(npz, 60)
    open_data()
    assert hashed == ["mine.npz"]  # its time was another than at the first start
    hashed.clear()
    data = open_data()
    assert hashed == []
    np.testing.assert_array_equal(data.train, TRAIN)


def test_a_file_just_written_is_hashed_every_time(open_data, folder, hashed):
    open_data()
    open_data()
    assert hashed == ["mine.npz", "mine.npz"]


def test_a_changed_npz_is_noticed(npz, open_data, folder):
    _age(npz, 60)
    before = open_data()
    np.savez(npz, train=TRAIN[::-1], test=TEST, test_source=np.arange(8))  # of the same size
    after = open_data()
    np.testing.assert_array_equal(after.train, TRAIN[::-1])
    assert after.fingerprint != before.fingerprint


def test_a_touched_copy_is_hashed_once(npz, open_data, folder, hashed):
    _age(npz, 60)
    fingerprint = open_data().fingerprint
    hashed.clear()
    _age(folder / "train.npy", 1000)
    assert open_data().fingerprint == fingerprint
    assert set(hashed) == {"train.npy"}
    hashed.clear()
    open_data()
    assert hashed == []


def test_damaged_content(folder, open_data, one_clear_line):
    for name in ("train.npy", "test.npy", "test_source.npy"):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        _age(path, 1000)
        with one_clear_line(f"in {folder} is damaged .the content of {name} has ch.*delete that"):
            open_data()
        path.write_bytes(whole)
    np.testing.assert_array_equal(open_data().train, TRAIN)


def test_half_written_content(folder, open_data, one_clear_line):
    path = folder / "train.npy"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size // 2)
    with one_clear_line(f"train.npy has {size // 2} bytes, not {size}.*delete that folder"):
        open_data()


@pytest.mark.parametrize("name", ["meta.json", "train.npy", "test.npy"])
def test_missing_file(folder, open_data, one_clear_line, name):
    (folder / name).unlink()
    with one_clear_line(f"in {folder} is damaged .*{name}.*delete that folder"):
        open_data()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 99}'])
def test_unreadable_description(folder, open_data, one_clear_line, content):
    (folder / "meta.json").write_text(content)
    with one_clear_line(f"in {folder} is damaged"):
        open_data()


def test_an_interrupted_write_is_ignored_and_done_anew(folder, open_data):
    partial = folder.with_name(folder.name + ".partial-0123abcd")
    folder.rename(partial)
    (partial / "meta.json").unlink()
    (partial / "train.npy").write_bytes(b"half")
    np.testing.assert_array_equal(open_data().train, TRAIN)
    assert partial.exists()  # it may be another process's, still at work
    _age(partial, 2 * 24 * 3600)
    shutil.rmtree(folder)
    open_data()
    assert partial.exists()  # a file in it is being written
    for path in partial.iterdir():
        _age(path, 2 * 24 * 3600)
    _age(partial, 2 * 24 * 3600)
    shutil.rmtree(folder)
    open_data()
    assert not partial.exists()


def test_a_failing_write_leaves_nothing(npz, tmp_path, monkeypatch, one_clear_line):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with one_clear_line("can't be kept in data_dir=.*No space left on device.*another data_dir"):
        load("arrays", path=npz, data_dir=tmp_path / "d")
    assert not list((tmp_path / "d" / "decoded").glob("arrays-*"))


def test_the_first_of_two_writers_wins(folder):
    before = json.loads((folder / "meta.json").read_text())
    cache.write(folder, TRAIN[::-1], TEST, 256)
    assert json.loads((folder / "meta.json").read_text()) == before
    assert not list(folder.parent.glob("*.partial-*"))


class Numbered:
    """Blocks of images that tell their own number, made one by one."""

    def __init__(self, count: int, shape=(64, 64, 3), rows: int = 16):
        self.count, self.shape, self.rows = count, shape, rows

    def part(self, name: str = "big") -> stream.Stream:
        return stream.Stream(name, (self.count, *self.shape), self)

    def __iter__(self):
        for start in range(0, self.count, self.rows):
            numbers = np.arange(start, min(start + self.rows, self.count))
            images = np.broadcast_to(
                numbers[:, None, None, None] % 251, (len(numbers), *self.shape)
            )
            yield images.astype(np.uint8), numbers % 7


def test_a_stream_is_written_as_it_comes_and_never_held_whole(tmp_path):
    big, small = Numbered(4001), Numbered(33)
    target = cache.decoded(tmp_path, "big")
    tracemalloc.start()
    try:
        cache.write(target, big.part(), small.part(), 256, label_names="abcdefg")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    data = cache.read(target, "big")
    whole = data.train.nbytes
    assert whole == 4001 * 64 * 64 * 3
    assert peak < whole / 8  # a block and what is hashed at a time, not the part
    np.testing.assert_array_equal(data.train, np.concatenate([images for images, _ in big]))
    np.testing.assert_array_equal(data.labels["train"], np.arange(4001) % 7)
    np.testing.assert_array_equal(data.labels["test"], np.arange(33) % 7)
    assert (data.label_names, data.num_classes) == (tuple("abcdefg"), 7)
    assert data.fingerprint == fingerprint(np.array(data.train), np.array(data.test), 256)


def test_a_stream_gives_the_very_file_that_the_array_gives(tmp_path):
    blocks = Numbered(50, (3, 5, 1), rows=7)
    images = np.concatenate([images for images, _ in blocks])
    cache.write(tmp_path / "streamed", blocks.part(), TEST, 256)
    cache.write(tmp_path / "array", images, TEST, 256)
    streamed, array = (tmp_path / name / "train.npy" for name in ("streamed", "array"))
    assert streamed.read_bytes() == array.read_bytes()


@pytest.mark.parametrize(("told", "match"), [(49, "more than 49 images"), (51, "50 .*wanted 51")])
def test_a_stream_of_another_length_leaves_nothing(tmp_path, one_clear_line, told, match):
    part = stream.Stream("mine, train", (told, 4, 4, 3), Numbered(50, (4, 4, 3)))
    with one_clear_line(f"mine, train: {match}"):
        cache.write(tmp_path / "copy", part, TEST, 256)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_an_older_version_is_left_alone(open_data, folder, caplog):
    older = folder.with_name(folder.name.removesuffix("-v2"))
    folder.rename(older)
    (older / "meta.json").write_text('{"format": 1}')
    np.testing.assert_array_equal(open_data().train, TRAIN)
    assert f"{older} is of an older version and not read any more; delete it" in caplog.text
    assert (older / "meta.json").exists()
