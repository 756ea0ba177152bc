"""Random changes to one training image, each with a flag that tells the network of it.

Each maps (image, uint8 [height, width, channels]; a NumPy generator of its own) to (image, whether
it was changed). That flag becomes the batch's "conditioning", as in the published CIFAR-10 runs
with augmentation: the network learns both densities and is evaluated with 0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vdm_jax.data.batches import Batch, Transform
from vdm_jax.errors import UserError

_Changed = tuple[np.ndarray, bool]
Augmentation = Callable[[np.ndarray, np.random.Generator], _Changed]

# The eight neighbours that an image may be shifted to: (down, right), in pixels.
_SHIFTS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


def _flip(image: np.ndarray, rng: np.random.Generator) -> _Changed:
    return (image[:, ::-1], True) if rng.random() < 0.5 else (image, False)


def _flip_rot90(image: np.ndarray, rng: np.random.Generator) -> _Changed:
    image, flipped = _flip(image, rng)
    if rng.random() < 0.5:
        return np.rot90(image, int(rng.integers(1, 4))), True
    return image, flipped


def _flip_rot90_channels(image: np.ndarray, rng: np.random.Generator) -> _Changed:
    image, changed = _flip_rot90(image, rng)
    if rng.random() < 0.5:
        return image[..., rng.permutation(image.shape[-1])], True
    return image, changed


def _shift(image: np.ndarray, rng: np.random.Generator) -> _Changed:
    if rng.random() < 0.5:
        dy, dx = _SHIFTS[rng.integers(len(_SHIFTS))]
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        return padded[1 - dy :, 1 - dx :][: image.shape[0], : image.shape[1]], True
    return image, False


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": lambda image, rng: (image, False),
    "flip": _flip,
    "flip_rot90": _flip_rot90,
    "flip_rot90_channels": _flip_rot90_channels,
    "shift": _shift,
}


def augmented(name: str, event_shape: tuple[int, ...]) -> Transform:
    """Returns the transform of images of shape `event_shape` by the augmentation called `name`.

    "flip" mirrors left to right; "flip_rot90" also turns by k * 90 degrees, k uniform in 1, 2, 3
    (the published `cifar10_aug`; square images only); "flip_rot90_channels" also permutes the
    channels at random (`cifar10_aug_with_channel`); "shift" moves to one of the 8 neighbouring
    positions, zero-filled: each of these with probability 1/2. "none" leaves the image as it is.
    Raises UserError for an unknown name, or a rotation of images that aren't square.
    """
    if name not in AUGMENTATIONS:
        raise UserError(f"augment={name!r} is unknown; choose one of {', '.join(AUGMENTATIONS)}")
    height, width = event_shape[:2]
    if "rot90" in name and height != width:
        said = f"augment={name!r} needs square images, but these are {height}x{width}"
        raise UserError(f"{said} (height x width); use 'none', 'flip' or 'shift', or crop them")

    def transform(example: Batch, rng: np.random.Generator) -> Batch:
        image, changed = AUGMENTATIONS[name](example["images"], rng)
        return {"images": image, "conditioning": flagged(changed, example["conditioning"])}

    return transform


def flagged(changed: Any, condition: np.ndarray | None) -> np.ndarray:
    """Returns float32 flags [...], or with a `condition` [..., k] behind them [..., 1 + k]."""
    flags = np.asarray(changed, np.float32)
    if condition is None:
        return flags
    return np.concatenate([flags[..., None], condition], axis=-1, dtype=np.float32)
