"""Batches: an endless random-access stream to train on, one exact pass to evaluate on.

A training batch is a pure function of (seed, step), whatever the number of processes, so the step
is the whole state of the stream: a restart, or one with another number of processes, goes on
exactly where the last run stopped.

Examples are a mapping of arrays, or of pytrees of arrays, whose first axes are equal: "images"
[n, *event], "conditioning" (what the network is told of each; None: nothing), and whatever else.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np

from vdm_jax import checks

Batch = dict[str, Any]
Transform = Callable[[Batch, np.random.Generator], Batch]
"""Function (example, its own random numbers) -> what a batch has of it."""


def train_batches(
    examples: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    transform: Transform | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> grain.MapDataset[Any]:
    """Returns the endless, randomly accessible stream of training batches.

    Each epoch visits every example once in an order of its own; batches run on across the ends
    of epochs. Process p of P gets rows [p * local, (p + 1) * local) of the global batch, with
    local = batch_size / P.

    Args:
      examples: see above; arrays may be memory-mapped.
      batch_size: examples in a batch over all processes together; a multiple of their number.
      seed: in [0, 2**32); settles the orders and the random numbers of `transform`.
      transform: what is made of each example; None takes it as it is.
      process_index, process_count: p and P, by default JAX's own.

    Returns:
      `ds` with `ds[step]` = the examples' mapping with leaves [local, ...].
    """
    leaves, structure, count = _checked(examples)
    local, process_index, process_count = _share(batch_size, process_index, process_count)
    checks.count(seed, "seed", least=0, most=2**32 - 1)

    def examples_at(index: Any) -> Batch:
        found: Batch = structure.unflatten([leaf[index] for leaf in leaves])
        return found

    stream = grain.MapDataset.range(count).seed(int(seed)).shuffle().repeat()
    # Without `drop_remainder` Grain gets the length of an endless stream of batches of 1 wrong.
    if transform is None:
        blocks = stream.batch(local, drop_remainder=True).map(examples_at)
    else:
        changed = stream.random_map(lambda index, rng: transform(examples_at(index), rng))
        blocks = changed.batch(local, drop_remainder=True)
    # Block number step * P + p is process p's contiguous part of global batch number step.
    return blocks[process_index::process_count]


def stacked(
    batches: grain.MapDataset[Any], start: int, steps_per_call: int = 1
) -> contextlib.AbstractContextManager[Iterator[Batch]]:
    """Returns the context of an endless iterator over the batches start, start + 1, ....

    Its items are `steps_per_call` consecutive batches, stacked (for 1 too): leaves
    [steps_per_call, local_batch, ...]. Two of them are built ahead in a thread of their own, which
    ends with the context; what it raises, the `next` raises that would have given the item.
    """
    checks.count(start, "start", least=0)
    checks.count(steps_per_call, "steps_per_call")
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    chunks = batches[start:].batch(steps_per_call, drop_remainder=True)
    return contextlib.closing(iter(chunks.to_iter_dataset(ahead)))


def eval_batches(
    examples: Mapping[str, Any],
    *,
    batch_size: int,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Iterator[Batch]:
    """Returns one exact pass over the examples, in order; the last batch is padded.

    Arguments, and what each process gets, are those of `train_batches`, with no transform; all
    have as many batches. Besides what the examples have a batch has "present", float32 [local],
    1 for an example and 0 for padding, which repeats the last one, and "index", int32 [local], the
    example's place, -1 for padding.
    """
    leaves, structure, count = _checked(examples)
    local, process_index, _ = _share(batch_size, process_index, process_count)

    def batch(start: int) -> Batch:
        index = np.arange(start, start + local)
        rows, present = np.minimum(index, count - 1), index < count
        return {
            **structure.unflatten([leaf[rows] for leaf in leaves]),
            "present": present.astype(np.float32),
            "index": np.where(present, index, -1).astype(np.int32),
        }

    starts = range(process_index * local, count + process_index * local, batch_size)
    return map(batch, starts)


def _checked(examples: Mapping[str, Any]) -> tuple[list[np.ndarray], Any, int]:
    """Returns the arrays of the examples, what they are the leaves of, and their number."""
    found, structure = jax.tree_util.tree_flatten_with_path(dict(examples))
    # np.memmap -> a plain view: much cheaper to index.
    leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}
    counts = {name: leaf.shape[:1] for name, leaf in leaves.items()}
    if len(set(counts.values())) != 1 or min(counts.values()) < (1,):
        said = ", ".join(f"{name} {leaf.shape}" for name, leaf in leaves.items()) or "none"
        raise ValueError(f"examples are {said}; wanted arrays of one length of at least 1")
    return [*leaves.values()], structure, min(counts.values())[0]


def _share(batch_size: int, index: int | None, count: int | None) -> tuple[int, int, int]:
    """Returns how many examples of a batch a process has, its number, and that of all."""
    index = jax.process_index() if index is None else index
    count = jax.process_count() if count is None else count
    checks.count(batch_size, "batch_size")
    checks.count(count, "process_count")
    checks.count(index, "process_index", least=0, most=count - 1)
    if batch_size % count:
        raise ValueError(f"batch_size={batch_size} is no multiple of process_count={count}")
    return batch_size // count, index, count
