"""PNG, WebP, JPEG-XL and xz: the sizes that other lossless codecs need for the same images.

Values go in as they are, in 8 bits: 0..16 of 17 levels stays 0..16, not spread over 0..255.
"""

import contextlib
import importlib
import io
import lzma
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vdm_jax import extras

extras.need("data")

from PIL import Image

SIDE = 8192  # pixels of a mosaic at most; WebP takes 16383, and Pillow finds far more suspicious
_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"format": "PNG", "optimize": True},
    "WebP": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
    "JPEG-XL": {"format": "JXL", "lossless": True, "effort": 9},
}


def sizes(images: np.ndarray | Sequence[np.ndarray]) -> dict[str, int]:
    """Returns the bytes that codecs need for uint8 images [n, height, width, channels], by name.

    Image codecs see one image at a time, then all side by side in mosaics, unless `images` are a
    sequence of any sizes. Three channels are RGB, others lie side by side as grey. Codecs that
    Pillow hasn't are left out. Raises ValueError for images larger than 8192 a side.
    """
    planes = [_plane(image) for image in images]
    kinds = {"each image": planes}
    for plane in planes:
        if max(plane.shape[:2]) > SIDE:
            raise ValueError(f"images must have at most {SIDE} pixels a side, not {plane.shape}")
    if isinstance(images, np.ndarray):
        mosaics = list(_mosaics(np.stack(planes)))
        kinds["one mosaic" if len(mosaics) == 1 else f"{len(mosaics)} mosaics"] = mosaics
    Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")  # which makes JPEG-XL known to Pillow
    codecs = [name for name, options in _OPTIONS.items() if options["format"] in Image.SAVE]
    found = {
        f"{name}, {kind}": sum(_size(name, picture) for picture in pictures)
        for kind, pictures in kinds.items()
        for name in codecs
    }
    raw = b"".join(image.tobytes() for image in images)
    xz = len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    return found | {"xz": xz, "raw": len(raw)}


def _plane(image: np.ndarray) -> np.ndarray:
    """Returns [height, width, 3] or [height, width']."""
    if image.shape[-1] == 3:
        return image
    return np.concatenate(np.moveaxis(image, -1, 0), axis=1)


def _mosaics(planes: np.ndarray) -> Iterator[np.ndarray]:
    """Yields about as many rows as columns of tiles; those that are left over are zero."""
    _, height, width, *channels = planes.shape
    most = SIDE // max(height, width)
    for start in range(0, len(planes), most**2):
        tiles = planes[start : start + most**2]
        columns = math.ceil(math.sqrt(len(tiles)))
        rows = -(-len(tiles) // columns)
        grid = np.pad(tiles, [(0, rows * columns - len(tiles))] + [(0, 0)] * (tiles.ndim - 1))
        grid = grid.reshape(rows, columns, height, width, *channels).swapaxes(1, 2)
        yield grid.reshape(rows * height, columns * width, *channels)


def _size(name: str, pixels: np.ndarray) -> int:
    """Returns the bytes of one picture. Raises RuntimeError if it doesn't come back as it was."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, **_OPTIONS[name])
    with Image.open(buffer) as image:
        found = np.asarray(image)
    if pixels.ndim == 2 and found.ndim == 3 and (found == found[..., :1]).all():
        found = found[..., 0]  # JPEG-XL keeps some grey pictures as RGB
    if not np.array_equal(found, pixels):
        raise RuntimeError(f"{name} is not lossless on a picture of shape {pixels.shape}")
    return len(buffer.getvalue())
