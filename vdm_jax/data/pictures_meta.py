"""What came in, in a few bytes: all that giving it back needs besides the pixels.

docs/vdmz.md has the format byte by byte. What is read here may be hostile: nothing is unpickled, no
name leads out of a folder, and what is announced is checked before memory is taken for it.
"""

import dataclasses
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping

import numpy as np

from vdm_jax.data.packing import MOST_PATH, check_name, ended, order, packed, unpacked

__all__ = ["MOST", "Array", "Folder", "Npy", "Npz", "unpack"]

MOST = 64 << 20  # bytes of arrays that are no images, or of names, unpacked
_MOST_JSON = 1 << 18
_DTYPE = re.compile(r"[<>|][biufcSUVMm][0-9]{1,9}(\[[A-Za-z0-9/]{1,16}\])?")
_SIZE, _SIGNED, _BIG, _BY_COLUMNS, _CHANNEL_AXIS = 3, 4, 8, 16, 32  # bits of Npy's second byte


@dataclasses.dataclass(frozen=True)
class Array:
    """How an array lies in a file; `by_columns` is Fortran's order."""

    dtype: np.dtype
    shape: tuple[int, ...]
    by_columns: bool

    @property
    def bytes(self) -> int:
        """Of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_images(self) -> bool:
        """Whether it is integers [n, height, width] or [n, height, width, channels], not empty."""
        return self.dtype.kind in "iu" and len(self.shape) in (3, 4) and 0 not in self.shape

    @property
    def event(self) -> tuple[int, ...]:
        """(height, width, channels) of an array of images."""
        return (*self.shape[1:], 1)[:3]


@dataclasses.dataclass(frozen=True)
class Npy:
    """An .npy file, [n, height, width] or with channels."""

    array: Array

    def pack(self) -> bytes:
        """Two bytes."""
        dtype = self.array.dtype
        flags = int(math.log2(dtype.itemsize))
        flags |= _SIGNED * (dtype.kind == "i") | _BIG * (dtype.str[0] == ">")
        flags |= _BY_COLUMNS * self.array.by_columns | _CHANNEL_AXIS * (len(self.array.shape) == 4)
        return bytes([1, flags])

    @classmethod
    def unpack(cls, body: bytes, shape: tuple[int, ...]) -> "Npy":
        """From what follows the first byte. Raises ValueError."""
        if len(body) != 1 or body[0] >= 2 * _CHANNEL_AXIS:
            raise ValueError("the layout of an .npy is one byte below 64")
        flags = body[0]
        order, kind = "<>"[bool(flags & _BIG)], "ui"[bool(flags & _SIGNED)]
        dtype = np.dtype(f"{order}{kind}{1 << (flags & _SIZE)}")
        axes = 4 if flags & _CHANNEL_AXIS else 3
        if axes == 3 and shape[3] != 1:
            raise ValueError(f"images without a channel axis can't have {shape[3]} channels")
        npy = cls(Array(dtype, shape[:axes], bool(flags & _BY_COLUMNS)))
        if npy.pack()[1] != flags:
            raise ValueError("a byte has no byte order")
        return npy

    def words(self) -> str:
        """What it is, for a summary."""
        return f".npy of {self.array.dtype.name}"


@dataclasses.dataclass(frozen=True)
class Npz:
    """An .npz file: its arrays in their order, and the elements of those that are no images."""

    arrays: Mapping[str, Array]
    others: bytes

    def pack(self) -> bytes:
        """Raises ValueError if names or arrays are too many or can't be kept."""
        for name in self.arrays:
            check_name(name.encode() + b".npy")
        rows = [
            [name, array.dtype.str, int(array.by_columns), array.shape]
            for name, array in self.arrays.items()
        ]
        header = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
        if len(header) > _MOST_JSON:
            raise ValueError(f"names and shapes of {len(rows)} arrays are too long to be kept")
        told = packed(header)
        rest = packed(self.others) if self.others else b""
        return b"\2" + struct.pack("<I", len(told)) + told + rest

    @classmethod
    def unpack(cls, body: bytes, shape: tuple[int, ...]) -> "Npz":
        """From what follows the first byte. Raises ValueError."""
        if len(body) < 4:
            raise ValueError("the layout of an .npz ends too early")
        end = 4 + struct.unpack("<I", body[:4])[0]
        arrays = _arrays(unpacked(body[4:end], _MOST_JSON))
        images = [array for array in arrays.values() if array.is_images]
        if any(array.event != shape[1:] for array in images):
            raise ValueError("arrays of images and the images differ in shape")
        if sum(array.shape[0] for array in images) != shape[0]:
            raise ValueError(f"arrays of images don't make up {shape[0]} images")
        size = sum(array.bytes for array in arrays.values() if not array.is_images)
        if size > MOST:
            raise ValueError(f"arrays that are no images have {size:,} bytes; at most {MOST:,}")
        others = unpacked(body[end:], size) if size else b""
        if len(others) != size or (not size and body[end:]):
            raise ValueError(f"arrays that are no images don't have {size:,} bytes")
        return cls(arrays, others)

    def words(self) -> str:
        """What it is, for a summary."""
        images = sum(array.is_images for array in self.arrays.values())
        return f".npz with {images} of {len(self.arrays)} arrays images"


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of PNG files.

    Attributes:
      grey: of images of 3 channels, whether each is written as grey: bits, the first the highest;
        of images of 1 channel nothing.
      listing: the paths below the folder, UTF-8 with "/", a NUL after each, in the order of
        `order`.
    """

    grey: bytes
    listing: bytes

    def pack(self) -> bytes:
        """Raises ValueError for names that can't be kept."""
        for _ in self.names():
            pass
        if len(self.listing) > MOST:
            raise ValueError(f"names of more than {MOST:,} bytes can't be kept")
        return b"\3" + packed(self.grey + self.listing)

    @classmethod
    def unpack(cls, body: bytes, shape: tuple[int, ...]) -> "Folder":
        """From what follows the first byte. Raises ValueError."""
        count, channels = shape[0], shape[3]
        if channels not in (1, 3):
            raise ValueError(f"pictures have 1 or 3 channels, not {channels}")
        bits = -(-count // 8) if channels == 3 else 0
        content = unpacked(body, bits + min(MOST, count * (MOST_PATH + 1)))
        folder = cls(content[:bits], content[bits:])
        if len(content) < bits or (bits and count % 8 and content[bits - 1] & (255 >> count % 8)):
            raise ValueError("the marks of grey pictures aren't one bit for each")
        if sum(1 for _ in folder.names()) != count:
            raise ValueError(f"there aren't names for {count} pictures")
        return folder

    def names(self) -> Iterator[str]:
        """The paths, in order. Raises ValueError for one that can't be a picture's in a folder."""
        above: bytes | None = None
        for name in ended(self.listing):
            check_name(name)
            if not name.lower().endswith(b".png"):
                raise ValueError(f"{name!r} is no name of a PNG file")
            if above is not None and order(name) <= order(above):
                raise ValueError(f"{name!r} is there twice or out of order")
            if above is not None and name.startswith(above + b"/"):
                raise ValueError(f"{above!r} is a picture and a folder")
            above = name
            yield name.decode()

    def is_grey(self, index: int) -> bool:
        """Whether a picture is to be written as grey."""
        return not self.grey or bool(self.grey[index // 8] & (128 >> index % 8))

    def words(self) -> str:
        """What it is, for a summary."""
        return f"folder of {self.listing.count(0)} pictures"


def unpack(meta: bytes, shape: tuple[int, ...]) -> Npy | Npz | Folder:
    """Returns what `meta` says of images [n, height, width, channels]. Raises ValueError."""
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"images have shape [n, height, width, channels], not {shape}")
    kinds: dict[int, type[Npy] | type[Npz] | type[Folder]] = {1: Npy, 2: Npz, 3: Folder}
    if not meta or meta[0] not in kinds:
        raise ValueError("of no known kind; known are .npy, .npz and a folder of pictures")
    return kinds[meta[0]].unpack(meta[1:], tuple(shape))


def _arrays(header: bytes) -> dict[str, Array]:
    try:
        rows = json.loads(header.decode())
    except RecursionError as error:
        raise ValueError("lists in lists in lists") from error
    if not isinstance(rows, list):
        raise ValueError("the arrays aren't listed")
    arrays = {}
    for row in rows:
        name, array = _array(row)
        if name in arrays:
            raise ValueError(f"array {name!r} is there twice")
        arrays[name] = array
    return arrays


def _array(row: object) -> tuple[str, Array]:
    match row:
        case [str(name), str(dtype), (0 | 1) as by_columns, [*sizes]]:
            check_name(name.encode() + b".npy")
        case _:
            raise ValueError("an array isn't told by name, type, order and shape")
    shape = tuple(size for size in sizes if type(size) is int and 0 <= size < 1 << 62)
    if len(shape) < len(sizes) or len(shape) > 32:
        raise ValueError(f"array {name!r} has no possible shape")
    return name, Array(_dtype(dtype), shape, bool(by_columns))


def _dtype(text: str) -> np.dtype:
    """Raises ValueError for all but plain numbers, text, times and bytes."""
    try:
        dtype = np.dtype(text) if _DTYPE.fullmatch(text) else None
    except (TypeError, ValueError, OverflowError, SyntaxError) as error:
        raise ValueError(f"{text!r} is no type of elements") from error
    if dtype is None or dtype.str != text:
        raise ValueError(f"{text[:40]!r} is no type of elements")
    return dtype
