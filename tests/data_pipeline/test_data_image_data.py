"""The fingerprint, and the validation split."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from vdm_jax.data import ImageData, image_data, validation_split
from vdm_jax.data.image_data import fingerprint

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 255, (10, 4, 4, 3), dtype=np.uint8)
TEST = RNG.integers(0, 255, (4, 4, 4, 3), dtype=np.uint8)


def test_fingerprint_is_the_documented_sha256(monkeypatch):
    header = json.dumps({"levels": 256, "test": TEST.shape, "train": TRAIN.shape})
    wanted = hashlib.sha256(header.encode() + TRAIN.tobytes() + TEST.tobytes()).hexdigest()
    for size in (1 << 24, 100, 1):  # by pieces it is the same
        monkeypatch.setattr(image_data, "_CHUNK_BYTES", size)
        assert fingerprint(TRAIN, TEST, 256) == wanted


def test_fingerprint_tells_contents_apart():
    other = TRAIN.copy()
    other[2, 1, 1, 0] ^= 1
    found = {
        fingerprint(TRAIN, TEST, 256),
        fingerprint(other, TEST, 256),
        fingerprint(TRAIN[::-1], TEST, 256),
        fingerprint(TRAIN, TEST, 255),
        fingerprint(TRAIN.reshape(-1, 2, 8, 3), TEST.reshape(-1, 2, 8, 3), 256),
        fingerprint(np.concatenate([TRAIN, TEST[:1]]), TEST[1:], 256),
    }
    assert len(found) == 6


@pytest.fixture
def data() -> ImageData:
    source = {"train": np.arange(10), "test": np.arange(4)}
    labels = {"train": np.arange(10) % 3, "test": np.arange(4) % 3}
    return ImageData("mine", TRAIN, TEST, 256, "0123", source, labels, ("a", "b", "c"))


def test_validation_split_holds_out_the_last_training_images(data):
    found = {data.fingerprint}
    for count in range(1, 10):
        split = validation_split(data, count)
        np.testing.assert_array_equal(split.train, data.train[: 10 - count])
        np.testing.assert_array_equal(split.test, data.train[10 - count :])
        np.testing.assert_array_equal(split.source["train"], np.arange(10 - count))
        np.testing.assert_array_equal(split.source["test"], np.arange(10 - count, 10))
        np.testing.assert_array_equal(split.labels["train"], np.arange(10 - count) % 3)
        np.testing.assert_array_equal(split.labels["test"], np.arange(10 - count, 10) % 3)
        assert (split.name, split.levels) == (f"mine:validation{count}", 256)
        assert split.label_names == data.label_names
        found.add(split.fingerprint)
    assert len(found) == 10
    derived = hashlib.sha256(b"validation_split:9:0123").hexdigest()  # as runs so far have it
    assert split.fingerprint == derived
    plain = validation_split(dataclasses.replace(data, source={"test": 1}, labels=None), 2)
    assert (plain.source, plain.labels) == (None, None)


@pytest.mark.parametrize("count", [0, -1, 10, 11])
def test_validation_split_needs_images_on_both_sides(one_clear_line, data, count):
    with one_clear_line(rf"count={count} of the 10 training images of mine .* count in 1..9"):
        validation_split(data, count)
