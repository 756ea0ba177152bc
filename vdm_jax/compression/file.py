"""The bytes of a VDMZ file: a header that says all, then a payload. docs/vdmz.md has the format.

Nothing is allocated for what the header promises before that is plausible for the bytes there.
"""

import contextlib
import io
import math
import struct
import zlib
from typing import NamedTuple

from vdm_jax.compression.chain import MOST_PARTS, MOST_STEPS
from vdm_jax.compression.steps import KNOTS
from vdm_jax.errors import UserError

MAGIC = b"VDMZ"
VERSIONS = 1, 2, 3  # 2: with a conditioning of each image; 3: that may be empty, and a profile
START = 5  # bytes of both
RAW, FALLBACK, CHAIN = range(3)
"""Modes of a block: its bytes as they are, by the simple model alone, by the VDM."""
MOST_BLOCKS = 4096
MOST_GRID = 64
MOST_DIMS = 1 << 28  # of one image
PER_BYTE = 1 << 16  # pixels that a byte of payload may stand for
PER_SIMPLE_BYTE = 1 << 7  # of the simple model, which takes at least 0.069 bits for one
MOST_META = 1 << 26  # bytes, also of the conditioning
_FIXED = struct.Struct("<4sB16s4sII")  # up to the payload's CRC, before the varints
_DAMAGED = "its header is damaged (checksum); get it anew"


class VdmzError(UserError):
    """Bytes that are no whole, undamaged VDMZ file for this model and machine; says which."""


class Block(NamedTuple):
    """Images coded on one stack."""

    mode: int  # RAW, FALLBACK or CHAIN
    images: int
    seeds: int  # the first of them, by the simple model
    size: int  # bytes of payload
    crc: int  # CRC32 of the pixels


class Header(NamedTuple):
    """All that a file says before its payload; `levels`, `num_steps`, `grid` as in `chain.make`."""

    model: bytes  # the first 16 bytes of the model's digest
    tables: bytes  # the first 4 bytes of the digest of the coding tables
    probe: int  # CRC32 of the network's rounded outputs on fixed inputs
    event_shape: tuple[int, ...]  # height, width and channels of one image
    levels: int
    num_steps: int
    grid: int
    blocks: tuple[Block, ...]  # in the order of their images; they tell the network's batches
    meta: bytes  # what the user of the codec keeps beside the pixels
    conditioning: bytes = b""  # float32, little-endian, of each image the same number of them
    profile: bytes = b""  # by which the steps were placed; without, they are equally far in t

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(block.images for block in self.blocks)

    @property
    def dims(self) -> int:
        """The number of values of an image."""
        return math.prod(self.event_shape)


def pack(header: Header, payload: bytes) -> bytes:
    """Returns the bytes of a file."""
    model = header.model, header.tables, header.probe
    told = zlib.compress(header.conditioning, 9) if header.conditioning else b""
    parts = [header.meta, told, header.profile]
    while not parts[-1] and len(parts) > 1:
        parts.pop()
    content = bytearray(_FIXED.pack(MAGIC, len(parts), *model, zlib.crc32(payload)))
    numbers = [header.num_steps, header.grid, header.levels - 1, *header.event_shape]
    numbers.append(len(header.blocks))
    for block in header.blocks:
        numbers += block[:4]
    for number in (*numbers, *map(len, parts)):
        while number >= 0x80:
            content.append(number & 0x7F | 0x80)
            number >>= 7
        content.append(number)
    content += struct.pack(f"<{len(header.blocks)}I", *(block.crc for block in header.blocks))
    content += b"".join(parts)
    return bytes(content) + struct.pack("<I", zlib.crc32(content)) + payload


def check_start(content: bytes) -> None:
    """Raises VdmzError unless a VDMZ file begins so; START bytes tell."""
    if content[:4] != MAGIC[: len(content)] or not content:
        raise VdmzError("it is no VDMZ file")
    if len(content) > 4 and content[4] not in VERSIONS:
        raise VdmzError(f"it is of VDMZ version {content[4]}; this program reads 1 to 3")


def unpack(content: bytes) -> tuple[Header, memoryview]:
    """Returns a file's header and payload, whole and undamaged. Raises VdmzError for others."""
    check_start(content)
    reader = io.BytesIO(content)
    try:
        header, payload_crc, told = _header(reader)
    except EOFError:
        raise VdmzError("it is cut short or damaged within its header; get it anew") from None
    payload = memoryview(content)[reader.tell() :]
    _check_plausible(header)
    wanted = reader.tell() + sum(block.size for block in header.blocks)
    short = wanted - len(content)
    if short > 0:
        raise VdmzError(f"it is cut short: {short:,} of {wanted:,} bytes are missing; get it anew")
    if short < 0:
        raise VdmzError(f"{-short:,} bytes follow its end; get it anew")
    if zlib.crc32(payload) != payload_crc:
        raise VdmzError("its payload is damaged (checksum); get it anew")
    if told:
        header = header._replace(conditioning=_conditioning(told, header.images))
    return header, payload


def _check_plausible(header: Header) -> None:
    """Checks a header before anything is allocated by it: a right checksum may still lie."""
    dims, first = header.dims, header.blocks[0].images
    t, grid = header.num_steps, header.grid
    coded = 1 <= t <= MOST_STEPS and 1 <= grid <= MOST_GRID and t * grid <= MOST_PARTS
    if not (coded and 2 <= header.levels <= 256 and 1 <= dims <= MOST_DIMS):
        raise VdmzError("its header promises what no VDMZ file holds; get it anew")
    for block in header.blocks:
        # Blocks are of one length: one long payload takes no memory in the lanes of all.
        pixels = block.images * dims
        fits = {
            RAW: block.size == pixels and block.seeds == 0,
            FALLBACK: pixels <= PER_SIMPLE_BYTE * block.size and block.seeds == 0,
            CHAIN: pixels <= PER_BYTE * block.size and 0 < block.seeds < block.images,
        }.get(block.mode, False)
        even = 1 <= block.images <= first <= block.images + 1
        if not fits or not even or block.size > pixels:
            said = f"its header promises {block.images:,} images in {block.size:,} bytes"
            raise VdmzError(f"{said}, which can't be; get it anew")


def _conditioning(packed: bytes, images: int) -> bytes:
    """Returns what was packed. Raises VdmzError unless it is as much for each of the images."""
    unpacker, found = zlib.decompressobj(), b""
    with contextlib.suppress(zlib.error):
        found = unpacker.decompress(packed, MOST_META)
    if not unpacker.eof or unpacker.unused_data or not found or len(found) % (4 * images):
        raise VdmzError("its conditioning isn't one of its images; get it anew")
    return found


def _header(reader: io.BytesIO) -> tuple[Header, int, bytes]:
    """Reads the header, the payload's CRC, and the packed conditioning, if there is one.

    Raises EOFError, or VdmzError if the header's own CRC is wrong.
    """
    _, version, model, tables, probe, payload_crc = _FIXED.unpack(_take(reader, _FIXED.size))
    num_steps, grid, below, *event_shape, count = (_varint(reader) for _ in range(7))
    if not 1 <= count <= MOST_BLOCKS:
        raise VdmzError(_DAMAGED)
    rows = [[_varint(reader) for _ in range(4)] for _ in range(count)]
    # Of meta, and in later versions of the packed conditioning and the profile.
    sizes = [_varint(reader) for _ in range(version)]
    if max(sizes) > MOST_META or sizes[2:] not in ([], [KNOTS]):
        raise VdmzError(_DAMAGED)
    crcs = struct.unpack(f"<{count}I", _take(reader, 4 * count))
    blocks = tuple(Block._make([*row, crc]) for row, crc in zip(rows, crcs, strict=True))
    meta, told, profile, *_ = *(_take(reader, size) for size in sizes), b"", b""
    found = zlib.crc32(reader.getbuffer()[: reader.tell()])
    if struct.unpack("<I", _take(reader, 4)) != (found,):
        raise VdmzError(_DAMAGED)
    shape = tuple(event_shape)
    numbers = below + 1, num_steps, grid
    header = Header(model, tables, probe, shape, *numbers, blocks, meta, profile=profile)
    return header, payload_crc, told


def _take(reader: io.BytesIO, size: int) -> bytes:
    content = reader.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _varint(reader: io.BytesIO) -> int:
    """Reads a LEB128 number of up to 63 bits."""
    number = 0
    for shift in range(0, 63, 7):
        (byte,) = _take(reader, 1)
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number
    raise VdmzError(_DAMAGED)
