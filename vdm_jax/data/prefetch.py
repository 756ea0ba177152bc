"""Batches built ahead of time in a background thread."""

import collections
import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from vdm_jax import checks

_Item = dict[str, np.ndarray]


class BatchIterator(Iterator[_Item]):
    """An endless iterator over `dataset[start]`, `dataset[start + 1]`, ..., for one consumer.

    `dataset` is anything with `dataset[step] -> dict of arrays`, e.g. from `train_batches`; `start`
    is the number of steps already taken. Items are `steps_per_call` consecutive batches, stacked
    (for 1 too): leaves [steps_per_call, local_batch, ...]. Up to `prefetch` items wait ready.

    Close it with `.close()` or `with`: it is exhausted then. An exception of the worker is raised
    by the `next` that would have given the missing item.
    """

    def __init__(self, dataset: Any, *, start: int, steps_per_call: int = 1, prefetch: int = 2):
        checks.count(start, "start", least=0)
        checks.count(steps_per_call, "steps_per_call")
        checks.count(prefetch, "prefetch")
        self._dataset, self._steps_per_call = dataset, steps_per_call
        self._steps = itertools.count(start, steps_per_call)
        self._worker = ThreadPoolExecutor(1, "vdm_jax-batches")
        self._ready: collections.deque[Future[_Item]] = collections.deque()
        for _ in range(prefetch):
            self._order_one()

    def _order_one(self) -> None:
        arguments = self._dataset, next(self._steps), self._steps_per_call
        self._ready.append(self._worker.submit(_stacked, *arguments))

    def __next__(self) -> _Item:
        if not self._ready:
            raise StopIteration
        try:
            item = self._ready.popleft().result()
        except BaseException:
            self.close()
            raise
        self._order_one()
        return item

    def close(self) -> None:
        """Stops the worker and waits for it; may be called more than once."""
        self._worker.shutdown(cancel_futures=True)
        self._ready.clear()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _stacked(dataset: Any, start: int, count: int) -> _Item:
    batches = [dataset[start + i] for i in range(count)]
    return {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}
