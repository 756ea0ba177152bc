"""Reading what others wrote without trusting what it says of its own size.

A file of a few kilobytes can unpack to terabytes, and a header can promise any shape. So what is
announced is checked against what is there, and against a limit, before memory is taken for it.
"""

import dataclasses
import io
import math
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

UNREADABLE = (
    OSError,
    EOFError,
    ValueError,  # also UnicodeDecodeError, and numpy on a header
    KeyError,
    IndexError,
    OverflowError,
    RuntimeError,  # zipfile on encrypted members; NotImplementedError, RecursionError
    SyntaxError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What Python's readers raise for damaged archives and arrays."""

_CHUNK = 1 << 20
_HEADER = 1 << 14  # bytes; that of a plain array has 128
# As numpy packs; what other methods unpack may take any memory.
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Limited:
    """A binary file that raises ValueError once more than `most` bytes have come out of it."""

    def __init__(self, file: Any, most: int):
        self._file, self._most, self._left = file, most, most

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; by default all that are left, a piece at a time."""
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(_CHUNK), b""))
        content: bytes = self._file.read(min(size, _CHUNK))
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {self._most:,} bytes")
        return content


@dataclasses.dataclass(frozen=True)
class Member:
    """An array in an .npz file as its header tells of it; nothing of its content is read yet."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype
    offset: int

    def content(self, most: int) -> bytearray:
        """Its elements as they are stored. Raises ValueError for more than `most` bytes."""
        size = self.info.file_size - self.offset
        if size > most:
            raise ValueError(f"it has {size:,} bytes; at most {most:,} are read at once")
        with self._content() as file:
            return _exactly(file, size)

    def array(self, most: int) -> np.ndarray:
        """All of it. Raises ValueError if that is more than `most` bytes."""
        order: Any = "F" if self.by_columns else "C"
        return np.frombuffer(self.content(most), self.dtype).reshape(self.shape, order=order)

    def rows(self, piece: int, most: int) -> Iterator[np.ndarray]:
        """It, with at least one row, in blocks of rows [k, ...] of about `piece` bytes.

        An array stored by columns is read at once. Raises ValueError if a row, or such an array,
        has more than `most` bytes.
        """
        count, *row = self.shape
        if self.by_columns:
            yield from np.array_split(
                self.array(most), min(count, -(-self.info.file_size // piece))
            )
            return
        size = math.prod(row) * self.dtype.itemsize
        if size > most:
            raise ValueError(f"a row has {size:,} bytes; at most {most:,} are read at once")
        step = max(1, piece // size)
        with self._content() as file:
            for start in range(0, count, step):
                content = _exactly(file, min(step, count - start) * size)
                yield np.frombuffer(content, self.dtype).reshape(-1, *row)

    def _content(self) -> Any:
        """The file from the first element on; no more bytes come than the archive announces."""
        file = self.archive.open(self.info)
        _exactly(file, self.offset)
        return file


def member(archive: zipfile.ZipFile, name: str) -> Member:
    """What the header of the array `name` says, checked against the size of the zip member.

    Raises:
      one of `UNREADABLE`: it is damaged, holds Python objects, is packed in another way than numpy
        does, or its shape and type don't make up the size that the archive announces.
    """
    info = archive.getinfo(f"{name}.npy")
    check_packed(info)
    with archive.open(info) as file:
        return Member(archive, info, *header(file, info.file_size, "the archive"))


def header(file: Any, size: int, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """What the header of an .npy file of `size` bytes says, checked against that size.

    Args:
      file: the file at its start, open in binary mode; a few KB of it are read.
      size: how many bytes it has.
      where: what has them, for the error.

    Returns:
      the shape, whether it is stored by columns, the dtype, and where the first element lies.

    Raises:
      one of `UNREADABLE`, as for `member`.
    """
    start = io.BytesIO(file.read(_HEADER))
    version = np.lib.format.read_magic(start)
    if version not in _HEADERS:
        raise ValueError(f"it is .npy of version {version}; wanted plain numbers or text")
    shape, by_columns, dtype = _HEADERS[version](start)
    if dtype.hasobject or dtype.names or dtype.subdtype:
        raise ValueError(f"it holds {dtype} and not plain numbers or text; no object is unpickled")
    announced, there = math.prod(shape) * dtype.itemsize, size - start.tell()
    if announced != there or min(shape, default=0) < 0:
        raise ValueError(
            f"its header promises {dtype} {shape}, which is {announced:,} bytes, but {where} "
            f"has {there:,}"
        )
    return shape, by_columns, dtype, start.tell()


def check_packed(info: zipfile.ZipInfo) -> None:
    """Raises ValueError for a zip member that is encrypted, or packed otherwise than by deflate."""
    if info.flag_bits & 1:
        raise ValueError(f"{info.filename} is encrypted")
    if info.compress_type not in _PACKED:
        raise ValueError(f"{info.filename} is packed by method {info.compress_type}, not deflate")


def _exactly(file: Any, size: int) -> bytearray:
    """The next `size` bytes, a piece at a time. Raises ValueError if there are fewer."""
    content = bytearray()
    while len(content) < size:
        piece = file.read(min(_CHUNK, size - len(content)))
        if not piece:
            raise ValueError(f"it ends {size - len(content):,} bytes too early")
        content += piece
    return content
