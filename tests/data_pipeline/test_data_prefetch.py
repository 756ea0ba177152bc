"""The background thread: same items, clean ends, errors where they belong."""

import gc
import threading
import time

import numpy as np
import pytest

from vdm_jax.data import iterate


class Steps:
    """A data set whose batch number `step` holds its own number; counts what was asked for."""

    def __init__(self, fail_at: int | None = None):
        self.asked = []
        self.fail_at = fail_at

    def __getitem__(self, step):
        self.asked.append(step)
        if step == self.fail_at:
            raise OSError(f"disk gone at step {step}")
        return {"images": np.full((3, 2), step), "conditioning": np.zeros(3, np.float32)}


def _workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "vdm_jax-batches" and t.is_alive()]


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


def test_one_step_a_call_still_has_the_leading_axis():
    with iterate(Steps(), start=5) as stream:
        for step in (5, 6, 7):
            item = next(stream)
            np.testing.assert_array_equal(item["images"], np.full((1, 3, 2), step))
            assert item["conditioning"].shape == (1, 3)


def test_several_steps_a_call():
    with iterate(Steps(), start=4, steps_per_call=3) as stream:
        for first in (4, 7, 10):
            wanted = np.arange(first, first + 3)[:, None, None] * np.ones((3, 3, 2))
            np.testing.assert_array_equal(next(stream)["images"], wanted)


def test_it_works_ahead_but_not_further_than_told():
    steps = Steps()
    with iterate(steps, start=0, prefetch=3) as stream:
        assert _wait_for(lambda: len(steps.asked) == 4)  # three wait, one is in the hand
        time.sleep(0.05)
        assert steps.asked == [0, 1, 2, 3]
        next(stream)
        assert _wait_for(lambda: len(steps.asked) == 5)


def test_closing_while_the_worker_waits():
    steps = Steps()
    stream = iterate(steps, start=0, prefetch=1)
    assert _wait_for(lambda: len(steps.asked) == 2)
    stream.close()
    assert not _workers()
    stream.close()  # twice is no harm
    assert list(stream) == []


def test_leaving_the_block_on_an_error_closes():
    with pytest.raises(KeyError), iterate(Steps(), start=0):
        raise KeyError
    assert not _workers()


def test_an_abandoned_iterator_ends_its_worker():
    stream = iterate(Steps(), start=0)
    next(stream)
    del stream
    gc.collect()
    assert _wait_for(lambda: not _workers())


def test_the_workers_error_reaches_the_consumer_in_its_place():
    stream = iterate(Steps(fail_at=2), start=0)
    np.testing.assert_array_equal(next(stream)["images"], np.zeros((1, 3, 2)))
    np.testing.assert_array_equal(next(stream)["images"], np.ones((1, 3, 2)))
    with pytest.raises(OSError, match="disk gone at step 2"):
        next(stream)
    assert not _workers()
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"start": -1}, "start=-1 must be a whole number of at least 0"),
        ({"start": 0.5}, "start=0.5 must be a whole number"),
        ({"start": 0, "steps_per_call": 0}, "steps_per_call=0 must be a whole number of at least"),
        ({"start": 0, "prefetch": 0}, "prefetch=0 must be a whole number of at least 1"),
    ],
)
def test_unfit_arguments(one_clear_line, arguments, match):
    with one_clear_line(match):
        iterate(Steps(), **arguments)
