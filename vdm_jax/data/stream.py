"""Parts of a data set that are decoded while they are written, and so never held whole."""

import dataclasses
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from vdm_jax.data.errors import DataError

# Some images, uint8 [k, height, width, channels], and their class labels [k] where there are any.
Block = tuple[np.ndarray, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images that come one block after another.

    Attributes:
      what: what errors and the progress line call it, e.g. "imagenet_resized/32x32, train".
      shape: (count, height, width, channels) of all blocks together.
      blocks: the blocks in order; gone through once.
    """

    what: str
    shape: tuple[int, int, int, int]
    blocks: Iterable[Block]


Part = np.ndarray | Stream


def save(file: Any, part: Part) -> np.ndarray | None:
    """Writes `part` as .npy to an open file; returns the class labels that its blocks brought.

    Raises:
      DataError: the blocks hold more or fewer images than `part.shape` says.
    """
    if isinstance(part, np.ndarray):
        np.save(file, part, allow_pickle=False)
        return None
    count, *event_shape = part.shape
    header = {"descr": "|u1", "fortran_order": False, "shape": part.shape}
    np.lib.format.write_array_header_1_0(file, header)
    labels: list[np.ndarray] = []
    progress = _Progress(part.what, count)
    done = 0
    for images, label in part.blocks:
        if images.dtype != np.uint8 or list(images.shape[1:]) != event_shape:
            raise TypeError(f"a block is {images.dtype} {images.shape}; the part is {part.shape}")
        done += len(images)
        if done > count:
            raise DataError(f"{part.what}: more than {count} images came; wanted just so many")
        file.write(np.ascontiguousarray(images).data)
        if label is not None:
            labels.append(label)
        progress.show(done)
    if done != count:
        raise DataError(f"{part.what}: {done} images came; wanted {count}")
    progress.show(done, last=True)
    return np.concatenate(labels).astype(np.int32) if labels else None


class _Progress:
    """A line on stderr for what takes longer than a few seconds; on a terminal it is rewritten."""

    def __init__(self, what: str, count: int):
        self._what, self._count = what, count
        self._rewrite = sys.stderr.isatty()
        self._every_s = 1.0 if self._rewrite else 30.0
        self._begun = self._shown = time.monotonic()

    def show(self, done: int, last: bool = False) -> None:
        """Says how far it is, if the last time is some while ago."""
        now = time.monotonic()
        began_to_show = self._shown > self._begun
        if now - self._shown < self._every_s and not (last and began_to_show):
            return
        self._shown = now
        left = (now - self._begun) * (self._count - done) / done
        print(
            f"vdm_jax: {self._what}: {done:,} of {self._count:,} images decoded, "
            f"{left / 60:.0f} min left",
            end="\r" if self._rewrite and not last else "\n",
            file=sys.stderr,
            flush=True,
        )
