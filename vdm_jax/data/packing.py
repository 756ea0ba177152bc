"""Bytes and names from a file that may be hostile, and how they are packed into one.

No name leads out of a folder, and nothing unpacks to more than was said.
"""

import lzma
import zlib
from collections.abc import Iterator

__all__ = ["MOST_PATH", "check_name", "ended", "order", "packed", "unpacked"]

MOST_PATH = 4000  # bytes; Linux takes 4095 with what is before it
_MOST_NAME = 255
_XZ_MEMORY = 1 << 24  # bytes; what preset 6 packs needs 9 MiB
_ZLIB, _XZ = 1, 2


def check_name(name: bytes) -> None:
    """Raises ValueError for what is no relative path, or one with a hidden part ("..", too)."""
    parts = name[: MOST_PATH + 1].split(b"/")
    if len(name) > MOST_PATH or max(map(len, parts)) > _MOST_NAME:
        raise ValueError(
            f"{name[:40]!r}... is too long: at most {_MOST_NAME} bytes a name, {MOST_PATH} in all"
        )
    name.decode()  # raises UnicodeDecodeError, a ValueError
    if b"\0" in name or any(not part or part.startswith(b".") for part in parts):
        raise ValueError(f"{name[:_MOST_NAME]!r} is no plain relative path")


def ended(listing: bytes) -> Iterator[bytes]:
    """Yields the parts of it that end with a NUL, one at a time: there may be millions."""
    start = 0
    while start < len(listing):
        end = listing.find(b"\0", start)
        if end < 0:
            raise ValueError("a name doesn't end")
        yield listing[start:end]
        start = end + 1


def order(name: bytes) -> bytes:
    """What names are ordered by, folder by folder: with it "a.png/b" is next to "a.png"."""
    return name.replace(b"/", b"\0")


def packed(content: bytes) -> bytes:
    """Returns it by zlib or xz, whichever is shorter, after a byte that says which."""
    choices = (
        bytes([_ZLIB]) + zlib.compress(content, 9),
        bytes([_XZ]) + lzma.compress(content, check=lzma.CHECK_CRC32, preset=6),
    )
    return min(choices, key=len)


def unpacked(content: bytes, most: int) -> bytes:
    """Returns what was packed.

    Raises ValueError if it is damaged, goes on after its end, or is more than `most` bytes.
    """
    unpacker: zlib._Decompress | lzma.LZMADecompressor
    try:
        match content[:1]:
            case b"\1":
                unpacker = zlib.decompressobj()
            case b"\2":
                unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
            case _:
                raise ValueError("it is packed in no known way")
        inside = unpacker.decompress(content[1:], most + 1)
    except (zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"it can't be unpacked ({error})") from error
    if len(inside) > most:
        raise ValueError(f"it unpacks to more than {most:,} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("it is cut short, or goes on after its end")
    return inside
