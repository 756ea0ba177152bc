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
SOURCE = {"train": np.arange(10), "test": np.arange(4)}
LABELS = {part: numbers % 3 for part, numbers in SOURCE.items()}
DATA = ImageData("mine", TRAIN, TEST, 256, "0123", SOURCE, LABELS, ("a", "b", "c"))


def test_fingerprint_is_the_documented_sha256(monkeypatch):
    header = json.dumps({"levels": 256, "test": TEST.shape, "train": TRAIN.shape})
    wanted = hashlib.sha256(header.encode() + TRAIN.tobytes() + TEST.tobytes()).hexdigest()
    for size in (1 << 24, 100, 1):  # by pieces it is the same
        monkeypatch.setattr(image_data, "_CHUNK_BYTES", size)
        assert fingerprint(TRAIN, TEST, 256) == wanted


def test_validation_split_holds_out_the_last_training_images():
    found = {DATA.fingerprint}
    for count in (1, 4, 9):
        split = validation_split(DATA, count)
        rows = {"train": np.arange(10 - count), "test": np.arange(10 - count, 10)}
        for part in rows:
            np.testing.assert_array_equal(getattr(split, part), DATA.train[rows[part]])
            np.testing.assert_array_equal(split.source[part], rows[part])
            np.testing.assert_array_equal(split.labels[part], rows[part] % 3)
        assert (split.name, split.levels) == (f"mine:validation{count}", 256)
        assert split.label_names == DATA.label_names
        found.add(split.fingerprint)
    assert len(found) == 4
    derived = hashlib.sha256(b"validation_split:9:0123").hexdigest()  # as runs so far have it
    assert split.fingerprint == derived
    plain = validation_split(dataclasses.replace(DATA, source={"test": 1}, labels=None), 2)
    assert (plain.source, plain.labels) == (None, None)


def test_no_photograph_is_on_both_sides_of_a_validation_split(one_clear_line):
    photos = np.array(list("aaacbbbbcd"))
    data = dataclasses.replace(DATA, source={"train": photos, "test": photos[:3]})
    prints = set()
    cases = {4: [0, 1, 2], 6: [0, 1, 2], 3: [0, 1, 2], 2: [0, 1, 2, 4, 5, 6, 7], 1: [*range(9)]}
    for count, kept in cases.items():
        split = validation_split(data, count)
        np.testing.assert_array_equal(split.train, DATA.train[kept])
        np.testing.assert_array_equal(split.test, DATA.train[10 - count :])
        np.testing.assert_array_equal(split.labels["train"], np.array(kept) % 3)
        assert not set(split.source["train"]) & set(split.source["test"])
        whole = kept == [*range(10 - count)]
        assert whole == (split.fingerprint == validation_split(DATA, count).fingerprint)
        prints.add(split.fingerprint)
    assert len(prints) == 5
    data = dataclasses.replace(data, source={"train": photos[:3].repeat(4)[:10]})
    with one_clear_line("count=8 of the 10 .* are of the groups of all others"):
        validation_split(data, 8)


@pytest.mark.parametrize("count", [0, 10])
def test_validation_split_needs_images_on_both_sides(one_clear_line, count):
    with one_clear_line(rf"count={count} of the 10 training images of mine .* count in 1..9"):
        validation_split(DATA, count)
