"""Batches built ahead of time in a background thread."""

import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from vdm_jax.data.errors import DataError

_Queue = queue.Queue[Any]


def iterate(
    dataset: Any, *, start: int, steps_per_call: int = 1, prefetch: int = 2
) -> "BatchIterator":
    """Returns an endless iterator over `dataset[start]`, `dataset[start + 1]`, ...

    Args:
      dataset: anything with `dataset[step] -> dict of arrays`, e.g. from `train_batches`.
      start: the first step, i.e. the number of steps already taken.
      steps_per_call: how many consecutive batches are stacked into one item.
      prefetch: how many items may be ready and waiting.

    Returns:
      An iterator of dicts with leaves [steps_per_call, local_batch, ...] (that leading axis is
      there for 1 too). Close it with `.close()` or `with`; an exception of the worker is raised
      by the `next` that would have given the missing item.

    Raises:
      DataError: an argument out of range.
    """
    for name, value, least in (
        ("start", start, 0),
        ("steps_per_call", steps_per_call, 1),
        ("prefetch", prefetch, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise DataError(f"{name}={value!r} must be a whole number of at least {least}")
    return BatchIterator(dataset, int(start), int(steps_per_call), int(prefetch))


class BatchIterator(Iterator[dict[str, np.ndarray]]):
    """See `iterate`. For one consumer; after `close` it is exhausted."""

    def __init__(self, dataset: Any, start: int, steps_per_call: int, prefetch: int):
        """Starts the worker; the arguments are those of `iterate`, checked."""
        self._ready: _Queue = queue.Queue(maxsize=prefetch)
        self._stop = threading.Event()
        # The worker must not refer to `self`, or an abandoned iterator would live for ever.
        self._worker = threading.Thread(
            target=_work,
            args=(dataset, start, steps_per_call, self._ready, self._stop),
            name="vdm_jax-batches",
            daemon=True,
        )
        self._finalizer = weakref.finalize(self, _shut, self._ready, self._stop)
        self._worker.start()

    def __iter__(self) -> "BatchIterator":
        """Returns itself."""
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Waits for the next item; raises what the worker met instead of making it."""
        if self._stop.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        result: dict[str, np.ndarray] = item
        return result

    def close(self) -> None:
        """Stops the worker and waits for it; may be called more than once."""
        self._finalizer()
        self._worker.join()

    def __enter__(self) -> "BatchIterator":
        """Returns itself; the end of the block closes it."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Closes it."""
        self.close()


def _work(
    dataset: Any, start: int, steps_per_call: int, ready: _Queue, stop: threading.Event
) -> None:
    step = start
    while not stop.is_set():
        try:
            batches = [dataset[step + i] for i in range(steps_per_call)]
            item: Any = {key: np.stack([b[key] for b in batches]) for key in batches[0]}
        except BaseException as error:  # whatever it is, it is the consumer's to see
            item = error
        ready.put(item)
        if isinstance(item, BaseException):
            return
        step += steps_per_call


def _shut(ready: _Queue, stop: threading.Event) -> None:
    stop.set()
    # Room for a worker that waits in `put`: it then finds `stop` set. It puts one item at most,
    # and the queue has place for one once it is empty, so it can't be left waiting.
    while True:
        try:
            ready.get_nowait()
        except queue.Empty:
            return
