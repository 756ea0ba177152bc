"""Batches: an endless random-access stream to train on, one exact pass to evaluate on.

A training batch is a pure function of (seed, step), whatever the number of hosts, so the step
is the whole state of the stream: a restart, or one with another host count, goes on exactly
where the last run stopped.
"""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from vdm_jax.data import augment as augment_lib
from vdm_jax.data.errors import DataError
from vdm_jax.data.prefetch import iterate

__all__ = ["Batch", "eval_batches", "iterate", "train_batches"]

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
    of epochs, so `batch_size` may exceed the number of images. Host p of P gets rows
    [p * local, (p + 1) * local) of the global batch, with local = batch_size / P.

    Args:
      images: uint8 [n, height, width, channels], possibly memory-mapped.
      batch_size: images in a batch over all hosts together.
      seed: in [0, 2**32); settles the orders and the augmentations.
      augment: see `vdm_jax.data.augment.get`.
      process_index: this host, in [0, process_count).
      process_count: number of hosts; must divide `batch_size`.
      labels: class labels, int [n]; None leaves them out.

    Returns:
      `ds` with `ds[step]` = {"images": uint8 [local, height, width, channels],
      "conditioning": float32 [local], 1 where an augmentation was applied and else 0}. With
      labels "conditioning" is float32 [local, 2], that flag and the class label; images, order
      and augmentations are those without labels.

    Raises:
      DataError: an argument out of range.
    """
    images = _checked_images(images)
    labels = _checked_labels(labels, len(images))
    local = _local_size(batch_size, process_index, process_count)
    if not _is_whole(seed) or not 0 <= seed < 2**32:
        raise DataError(f"seed={seed!r} must be a whole number in [0, 2**32)")
    transform = augment_lib.get(augment, images.shape[1:])

    def element(item: tuple[np.ndarray, Any], rng: np.random.Generator) -> dict[str, Any]:
        image, changed = transform(item[0], rng)
        flag = np.float32(changed)
        conditioning = flag if item[1] is None else np.array([flag, item[1]], np.float32)
        return {"images": np.array(image), "conditioning": conditioning}  # own memory

    source = _Items(images, labels)
    stream = grain.MapDataset.source(source).seed(int(seed)).shuffle().repeat()
    # Without `drop_remainder` Grain gets the length of an endless stream of batches of 1 wrong.
    blocks = stream.random_map(element).batch(local, drop_remainder=True)
    # Block number step * P + p is host p's contiguous part of global batch number step.
    return blocks[process_index::process_count]


class _Items:
    """Pairs of an image and its label (None without labels), as Grain reads them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None):
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        return self._images[index], None if self._labels is None else self._labels[index]


def eval_batches(
    images: np.ndarray,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    labels: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Returns one exact pass over `images`, in order; the last batch is padded and masked.

    Host p of P gets rows [p * local, (p + 1) * local) of each global batch, and every host
    gets the same number of batches.

    Args:
      images: uint8 [n, height, width, channels].
      batch_size: images in a batch over all hosts together.
      process_index: this host, in [0, process_count).
      process_count: number of hosts; must divide `batch_size`.
      labels: class labels, int [n]; None leaves them out.

    Yields:
      {"images": uint8 [local, height, width, channels], "conditioning": float32 [local] zeros
      (with labels float32 [local, 2], zero and the class label),
      "mask": float32 [local], 1 for an image and 0 for padding, "index": int32 [local], the
      image's place in `images`, -1 for padding}. Padding repeats the last image.

    Raises:
      DataError: an argument out of range (at the call, not at the first batch).
    """
    images = _checked_images(images)
    labels = _checked_labels(labels, len(images))
    local = _local_size(batch_size, process_index, process_count)
    first = range(process_index * local, _round_up(len(images), batch_size), batch_size)
    return (_eval_batch(images, labels, start, local) for start in first)


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


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _checked_images(images: np.ndarray) -> np.ndarray:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
        kind = f"{getattr(images, 'dtype', type(images).__name__)} {np.shape(images)}"
        raise DataError(f"images are {kind}; wanted uint8 [n, height, width, channels]")
    if len(images) == 0:
        raise DataError("images are empty; wanted at least one image")
    return np.asarray(images)  # np.memmap -> a plain view: much cheaper to index


def _checked_labels(labels: np.ndarray | None, count: int) -> np.ndarray | None:
    """Returns the labels as float32, as the network gets them beside the augmentation's flag."""
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.dtype.kind not in "ui" or labels.shape != (count,) or labels.min() < 0:
        raise DataError(
            f"labels are {labels.dtype} {labels.shape}; wanted one integer of at least 0 for each "
            f"of the {count} images"
        )
    return labels.astype(np.float32)


def _local_size(batch_size: int, process_index: int, process_count: int) -> int:
    if not _is_whole(process_count) or process_count < 1:
        raise DataError(f"process_count={process_count!r} must be a whole number of at least 1")
    if not _is_whole(process_index) or not 0 <= process_index < process_count:
        raise DataError(f"process_index={process_index!r} must lie in [0, {process_count})")
    if not _is_whole(batch_size) or batch_size < 1:
        raise DataError(f"batch_size={batch_size!r} must be a whole number of at least 1")
    if batch_size % process_count:
        raise DataError(
            f"batch_size={batch_size} can't be split evenly over process_count={process_count} "
            f"hosts; use a multiple of {process_count}"
        )
    return int(batch_size // process_count)
