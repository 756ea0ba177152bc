"""The background thread: same items, clean ends, errors where they belong."""

import gc
import threading
import time

import numpy as np
import pytest

from vdm_jax.data import BatchIterator


class Steps:
    """A dataset whose batch number `step` holds its own number; counts what was asked for."""

    def __init__(self, fail_at: int | None = None):
        self.asked = []
        self.fail_at = fail_at

    def __getitem__(self, step):
        self.asked.append(step)
        if step == self.fail_at:
            raise OSError(f"disk gone at step {step}")
        return {"images": np.full((3, 2), step), "conditioning": np.zeros(3, np.float32)}


def _workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if "vdm_jax-batches" in t.name and t.is_alive()]


def _wait_for(condition) -> bool:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.fixture(autouse=True)
def _no_worker_survives():
    assert _wait_for(lambda: not _workers())
    yield
    assert _wait_for(lambda: not _workers())


def test_it_works_ahead_but_not_further_than_told_and_closes():
    steps = Steps()
    stream = BatchIterator(steps, start=0, prefetch=3)
    assert _wait_for(lambda: len(steps.asked) == 3)
    time.sleep(0.05)
    assert steps.asked == [0, 1, 2]
    next(stream)
    assert _wait_for(lambda: steps.asked == [0, 1, 2, 3])
    stream.close()
    assert not _workers()
    stream.close()  # twice is no harm
    assert list(stream) == []


def test_an_abandoned_iterator_ends_its_worker():
    stream = BatchIterator(Steps(), start=0)
    next(stream)
    del stream
    gc.collect()
    assert _wait_for(lambda: not _workers())


def test_items_are_consecutive_steps_stacked_and_leaving_the_block_closes():
    with BatchIterator(Steps(), start=4, steps_per_call=3) as stream:
        for first in (4, 7, 10):
            item = next(stream)
            wanted = np.arange(first, first + 3)[:, None, None] * np.ones((3, 3, 2))
            np.testing.assert_array_equal(item["images"], wanted)
            assert item["conditioning"].shape == (3, 3)
    assert not _workers()


def test_the_workers_error_reaches_the_consumer_in_its_place():
    stream = BatchIterator(Steps(fail_at=2), start=0)
    for step in range(2):
        np.testing.assert_array_equal(next(stream)["images"], np.full((1, 3, 2), step))
    with pytest.raises(OSError, match="disk gone at step 2"):
        next(stream)
    assert not _workers()
    with pytest.raises(StopIteration):
        next(stream)


def test_unfit_arguments():
    for name, least in (("start", 0), ("steps_per_call", 1), ("prefetch", 1)):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least {least}"):
            BatchIterator(Steps(), **{"start": 0} | {name: least - 1})
