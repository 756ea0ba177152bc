"""`ImageData`: two arrays of images and what reports must say about them."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vdm_jax.errors import UserError

_CHUNK_BYTES = 1 << 24


class Condition(NamedTuple):
    """Kind of condition: the class of each image, or numbers, or none where both are 0."""

    classes: int = 0
    numbers: int = 0

    @property
    def size(self) -> int:
        """The number of inputs of a network that it takes; a class is one of `classes`."""
        return self.classes + self.numbers

    @property
    def word(self) -> str:
        """Word for it in reports; empty where there is none."""
        return "class" if self.classes else "condition" if self.numbers else ""


UNCONDITIONAL = Condition()


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """Images to train on and to test on.

    Attributes:
      name: its name in every report, e.g. "digits" or "arrays:photos.npz".
      train, test: uint8 [n, height, width, channels]; memory-mapped where they come from disk.
      levels: every pixel value lies in [0, levels).
      fingerprint: sha256 (hex) of shapes, levels and pixels, whatever the name.
      source: group labels where there are any (which photo a crop was cut from): "train" and/or
        "test", each [n]. Error bars belong to groups, not to crops.
      labels: class labels where there are any: "train" and "test", each int32 [n] with values in
        [0, num_classes). They play no part in the fingerprint.
      label_names: the name of each class; empty where there are no labels.
      conditions: numbers to condition on where there are any: "train" and "test", each float32
        [n, k]. They play no part in the fingerprint.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    levels: int
    fingerprint: str
    source: Mapping[str, np.ndarray] | None = None
    labels: Mapping[str, np.ndarray] | None = None
    label_names: tuple[str, ...] = ()
    conditions: Mapping[str, np.ndarray] | None = None

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """The shape of one image, (height, width, channels)."""
        return self.train.shape[1:]

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 where there are no labels."""
        return len(self.label_names)

    @property
    def unseen_class(self) -> str | None:
        """The name of a class with test images and none to train on; None if there is none."""
        if self.labels is None:
            return None
        unseen = np.setdiff1d(self.labels["test"], self.labels["train"])
        return self.label_names[int(unseen[0])] if unseen.size else None

    @property
    def condition(self) -> Condition:
        """Kind of condition of a model of these images."""
        numbers = self.conditions["train"].shape[1] if self.conditions else 0
        return Condition(self.num_classes, numbers)

    def given(self, part: str) -> np.ndarray | None:
        """Returns the condition of each image of a part, [n, k]: its class, or its numbers."""
        if self.labels is not None:
            return self.labels[part][:, None]
        return None if self.conditions is None else self.conditions[part]

    def turns(self) -> np.ndarray | None:
        """Returns the conditions that samples take in turn: each class, or the test images'."""
        return np.arange(self.num_classes)[:, None] if self.labels else self.given("test")

    def examples(self, part: str) -> dict[str, np.ndarray | None]:
        """Returns what `batches` are made of: a part's images with their conditions."""
        return {"images": getattr(self, part), "conditioning": self.given(part)}


def as_images(array: np.ndarray, levels: int, what: str) -> np.ndarray:
    """Returns integers [n, height, width(, channels)] as uint8 [n, height, width, channels].

    Raises UserError, which calls the array `what`, for another type or shape, no image, or values
    outside [0, levels).
    """
    if array.ndim not in (3, 4) or 0 in array.shape:
        wanted = "at least one image, as [n, height, width] or [n, height, width, channels]"
        raise UserError(f"{what} has shape {array.shape}; wanted {wanted}")
    quantised = f"(x * {levels - 1}).round().astype('uint8') of x in [0, 1]"
    more = ", or set levels=" * (levels < 256)
    check_range(array, levels, what, f"quantise or rescale them ({quantised}){more}")
    return np.array(array, np.uint8, order="C").reshape(*array.shape[:3], -1)


def as_conditions(array: np.ndarray, what: str) -> np.ndarray:
    """Returns numbers [n, ...] as float32 [n, k].

    Raises UserError, which calls the array `what`, for none, or others than finite numbers.
    """
    if array.dtype.kind not in "biuf" or array.ndim == 0 or 0 in array.shape:
        wanted = "numbers [n, ...], a row for each image"
        raise UserError(f"{what} is {array.dtype} {array.shape}; wanted {wanted}")
    with np.errstate(over="ignore"):
        found = np.array(array, np.float32, order="C").reshape(len(array), -1)
    if not (finite := np.isfinite(found).all(axis=1)).all():
        row = int(np.argmin(finite))
        raise UserError(f"{what} holds a number in row {row} that isn't finite as a float32")
    return found


def check_range(array: np.ndarray, count: int, what: str, hint: str) -> None:
    """Raises UserError, which calls the array `what`, unless it holds integers in [0, count)."""
    wanted = f"wanted integers in [0, {count}): {hint}"
    if array.dtype.kind not in "ui":
        raise UserError(f"{what} holds {array.dtype} values; {wanted}")
    for extreme in (int(array.min()), int(array.max())):
        if not 0 <= extreme < count:
            raise UserError(f"{what} holds the value {extreme}; {wanted}")


def fingerprint(train: np.ndarray, test: np.ndarray, levels: int) -> str:
    """Returns the sha256 (hex) of the shapes, the levels and the pixel bytes of both parts."""
    header = {"levels": levels, "train": train.shape, "test": test.shape}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for part in (train, test):
        rows = max(1, _CHUNK_BYTES // max(1, part[0].nbytes))
        for start in range(0, len(part), rows):  # by chunks: `part` may be larger than memory
            digest.update(np.ascontiguousarray(part[start : start + rows]).data)
    return digest.hexdigest()


def validation_split(data: ImageData, count: int) -> ImageData:
    """Returns `data` with its last `count` training images, and all of theirs, as its test part.

    Images of a group that is held out in part are in neither. Name and fingerprint are its own,
    derived from those of `data`. Raises UserError where `count` leaves no image to validate on or
    none to train on.
    """
    total, source = len(data.train), (data.source or {}).get("train")
    held, said = total - count, f"count={count} of the {total} training images of {data.name}"
    if not 0 < count < total:
        hint = f"give a count in 1..{total - 1}"
        raise UserError(f"{said} can't be held out for validation; {hint}")
    alone = np.ones(held, bool) if source is None else ~np.isin(source[:held], source[held:])
    if not alone.any():
        raise UserError(f"{said} are of the groups of all others: none would be left to train on")
    rows, derived = np.flatnonzero(alone), f"validation_split:{count}:{data.fingerprint}".encode()
    if len(rows) < held:
        derived += rows.astype("<i8").tobytes()
    kept = slice(len(rows)) if rows[-1] < len(rows) else rows  # the former stays on the disk

    def split(labels: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray] | None:
        if labels is None or "train" not in labels:
            return None
        return {"train": labels["train"][kept], "test": labels["train"][held:]}

    return dataclasses.replace(
        data,
        name=f"{data.name}:validation{count}",
        train=data.train[kept],
        test=data.train[held:],
        fingerprint=hashlib.sha256(derived).hexdigest(),
        source=split(data.source),
        labels=split(data.labels),
        conditions=split(data.conditions),
    )
