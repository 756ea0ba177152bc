"""Random changes to one training image, each with a flag that tells the network of it.

Every augmentation maps `(image, rng)` to `(image, changed)`: `image` is uint8
[height, width, channels], `rng` a NumPy generator of this image's own. `changed` becomes the
batch's "conditioning" (1 where a transform was applied, 0 for the image as it is), as in the
published CIFAR-10 runs with augmentation: the network learns both densities and is evaluated
with 0.
"""

from collections.abc import Callable

import numpy as np

from vdm_jax.data.errors import DataError

Augmentation = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, bool]]

# The eight neighbours that an image may be shifted to: (down, right), in pixels.
_SHIFTS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


def _none(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    del rng
    return image, False


def _flip(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    if rng.random() < 0.5:
        return image[:, ::-1], True
    return image, False


def _flip_rot90(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    image, flipped = _flip(image, rng)
    if rng.random() < 0.5:
        return np.rot90(image, int(rng.integers(1, 4))), True
    return image, flipped


def _flip_rot90_channels(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    image, changed = _flip_rot90(image, rng)
    if rng.random() < 0.5:
        return image[..., rng.permutation(image.shape[-1])], True
    return image, changed


def _shift(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    if rng.random() < 0.5:
        dy, dx = _SHIFTS[rng.integers(len(_SHIFTS))]
        return shifted(image, dy, dx), True
    return image, False


def shifted(image: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Moves an image down by `dy` and right by `dx` pixels; what comes in is zero."""
    height, width = image.shape[:2]
    out = np.zeros_like(image)
    out[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = image[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return out


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": _none,
    "flip": _flip,
    "flip_rot90": _flip_rot90,
    "flip_rot90_channels": _flip_rot90_channels,
    "shift": _shift,
}


def get(name: str, event_shape: tuple[int, ...]) -> Augmentation:
    """Returns the augmentation called `name`, for images of shape `event_shape`.

    - "none": the image as it is.
    - "flip": mirrored left to right with probability 1/2.
    - "flip_rot90": the same, then with probability 1/2 turned by k * 90 degrees, k uniform in
      1, 2, 3 (the published `cifar10_aug`). Square images only.
    - "flip_rot90_channels": the same, then with probability 1/2 a uniformly random permutation
      of the channels (the published `cifar10_aug_with_channel`).
    - "shift": with probability 1/2 moved to one of the 8 neighbouring positions, zero-filled.

    Raises:
      DataError: an unknown name, or a rotation of images that aren't square.
    """
    if name not in AUGMENTATIONS:
        raise DataError(f"augment={name!r} is unknown; choose one of {', '.join(AUGMENTATIONS)}")
    height, width = event_shape[:2]
    if "rot90" in name and height != width:
        raise DataError(
            f"augment={name!r} turns images by 90 degrees and needs square ones, but these are "
            f"{height}x{width} (height x width); use 'none', 'flip' or 'shift', or crop them"
        )
    return AUGMENTATIONS[name]
