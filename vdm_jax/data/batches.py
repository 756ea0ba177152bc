"""Batches: an endless random-access stream to train on, one exact pass to evaluate on.

A training batch is a pure function of (seed, step), whatever the number of processes, so the step
is the whole state of the stream: a restart, or one with another number of processes, goes on
exactly where the last run stopped.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from vdm_jax import checks
from vdm_jax.data import augment as augment_lib

Batch = dict[str, np.ndarray]


def train_batches(
    images: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    augment: str = "none",
    process_index: int = 0,
    process_count: int = 1,
    labels: np.ndarray | None = None,
) -> grain.MapDataset[Any]:
    """Returns the endless, randomly accessible stream of training batches.

    Each epoch visits every image once in an order of its own; batches run on across the ends
    of epochs. Process p of P gets rows [p * local, (p + 1) * local) of the global batch, with
    local = batch_size / P.

    Args:
      images: uint8 [n, height, width, channels], possibly memory-mapped.
      batch_size: images in a batch over all processes together; a multiple of their number.
      seed: in [0, 2**32); settles the orders and the augmentations.
      augment: see `vdm_jax.data.augment.get`.
      process_index, process_count: p and P.
      labels: class labels, int [n]; they change neither images nor order.

    Returns:
      `ds` with `ds[step]` = {"images": uint8 [local, height, width, channels],
      "conditioning": float32 [local], 1 where an augmentation was applied and else 0, or with
      labels [local, 2], that flag and the class label}.
    """
    images, labels = _checked(images, labels)
    local = _local_size(batch_size, process_index, process_count)
    checks.count(seed, "seed", least=0, most=2**32 - 1)
    transform = augment_lib.get(augment, images.shape[1:])

    def element(index: int, rng: np.random.Generator) -> dict[str, Any]:
        image, changed = transform(images[index], rng)
        flag = np.float32(changed)
        conditioning = flag if labels is None else np.array([flag, labels[index]], np.float32)
        return {"images": np.array(image), "conditioning": conditioning}  # own memory

    stream = grain.MapDataset.range(len(images)).seed(int(seed)).shuffle().repeat()
    # Without `drop_remainder` Grain gets the length of an endless stream of batches of 1 wrong.
    blocks = stream.random_map(element).batch(local, drop_remainder=True)
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
    images: np.ndarray,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    labels: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Returns one exact pass over `images`, in order; the last batch is padded and masked.

    Arguments, and what each process gets, are those of `train_batches`, with no augmentation; all
    have as many batches. Besides "images" and "conditioning" a batch has "mask", float32 [local],
    1 for an image and 0 for padding, which repeats the last image, and "index", int32 [local], the
    image's place in `images`, -1 for padding.
    """
    images, labels = _checked(images, labels)
    local = _local_size(batch_size, process_index, process_count)
    starts = range(process_index * local, len(images) + process_index * local, batch_size)
    return (_eval_batch(images, labels, start, local) for start in starts)


def _eval_batch(images: np.ndarray, labels: np.ndarray | None, start: int, local: int) -> Batch:
    index = np.arange(start, start + local)
    real = index < len(images)
    rows = np.minimum(index, len(images) - 1)
    flags = np.zeros(local, np.float32)
    return {
        "images": images[rows],
        "conditioning": flags if labels is None else np.stack([flags, labels[rows]], axis=1),
        "mask": real.astype(np.float32),
        "index": np.where(real, index, -1).astype(np.int32),
    }


def _checked(images: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the images, and the labels as float32, as the network gets them beside the flag."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
        kind = f"{getattr(images, 'dtype', type(images).__name__)} {np.shape(images)}"
        raise ValueError(f"images are {kind}; wanted uint8 [n, height, width, channels]")
    if len(images) == 0:
        raise ValueError("images are empty; wanted at least one image")
    images = np.asarray(images)  # np.memmap -> a plain view: much cheaper to index
    if labels is None:
        return images, None
    labels = np.asarray(labels)
    if labels.dtype.kind not in "ui" or labels.shape != images.shape[:1] or labels.min() < 0:
        wanted = f"one integer of at least 0 for each of the {len(images)} images"
        raise ValueError(f"labels are {labels.dtype} {labels.shape}; wanted {wanted}")
    return images, labels.astype(np.float32)


def _local_size(batch_size: int, process_index: int, process_count: int) -> int:
    checks.count(batch_size, "batch_size")
    checks.count(process_count, "process_count")
    checks.count(process_index, "process_index", least=0, most=process_count - 1)
    if batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} is no multiple of process_count={process_count}")
    return batch_size // process_count
