"""Images to a VDMZ file and back: blocks, their seeding, and the order of all checks."""

import operator
import time
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vdm_jax.compression import fallback, file, ladder
from vdm_jax.compression.ans import Stacks, Underflow
from vdm_jax.compression.bits_back import Coder
from vdm_jax.compression.encoder import Encoder, Progress, Summary
from vdm_jax.compression.errors import VdmzError
from vdm_jax.compression.file import CHAIN, RAW, Header
from vdm_jax.compression.vdm import Network, Vdm, digest

__all__ = ["Progress", "Summary", "compress", "decompress", "read_header"]

_PER_BLOCK = 256  # images, of which two or three are seeds
_MOST_BLOCKS = 64


def compress(
    images: np.ndarray,
    vdm: Vdm,
    num_steps: int = 100,
    grid: int = ladder.DEFAULT_GRID,
    blocks: int | None = None,
    meta: bytes = b"",
    progress: Progress = lambda done, of: None,
) -> tuple[bytes, Summary]:
    """The VDMZ file of images, and what it came to.

    For the time of the call JAX computes in 64 bits, whatever it is set to. Nothing is decoded
    here: to be sure, hand the bytes to `decompress` and compare.

        vdm = Vdm(module.apply, params, gamma, event_shape=(32, 32, 3), levels=256)
        content, summary = compress(images, vdm, num_steps=250)
        images, meta = decompress(content, vdm)

    Args:
      images: integers in [0, levels), [n, height, width, channels].
      vdm: the model.
      num_steps: T: more are smaller and slower.
      grid: see `ladder.make`.
      blocks: stacks that are coded in step, each beginning with some images of the simple model;
        default one for each 256 images, up to 64.
      meta: kept in the file as it is, beside the images.
      progress: is called with how many images are done, and of how many.

    Raises:
      ValueError: for images of another shape or other levels than the model's, numbers out of
        range, a gamma that doesn't rise, and a network whose output isn't finite, of the shape of
        its input or float64.
    """
    images = _checked(images, vdm)
    num_steps, grid = _whole("num_steps", num_steps), _whole("grid", grid)
    if not 1 <= num_steps <= ladder.MOST_STEPS:
        raise ValueError(f"num_steps must be from 1 to {ladder.MOST_STEPS}, got {num_steps}.")
    if not 1 <= grid <= file.MOST_GRID:
        raise ValueError(f"grid must be from 1 to {file.MOST_GRID}, got {grid}.")
    count = min(max(len(images) // _PER_BLOCK, 1), _MOST_BLOCKS) if blocks is None else blocks
    count = _whole("blocks", count)
    if not 1 <= count <= min(len(images), file.MOST_BLOCKS):
        raise ValueError(
            f"blocks must be from 1 to {min(len(images), file.MOST_BLOCKS)}, got {count}."
        )
    model, meta = digest(vdm)[:16], bytes(memoryview(meta))  # what is no such thing fails early
    if len(meta) > file.MOST_META:
        raise ValueError(f"meta has {len(meta):,} bytes; at most {file.MOST_META:,} are kept.")
    with jax.enable_x64(True):
        levels = ladder.make(vdm.gamma, num_steps, vdm.levels, grid, vdm.reverse_var)
        network = Network(vdm, levels, count)
        probe = network.probe()
        parts = np.array_split(images, count)
        encoder = Encoder(vdm, Coder(levels, network), parts, progress)
        network.seconds, began = 0.0, time.perf_counter()
        encoder.run()
        seconds = time.perf_counter() - began
        found, payloads = zip(*map(encoder.block, range(count)), strict=True)
    header = Header(
        model=model,
        tables=levels.digest[:4],
        probe=probe,
        event_shape=vdm.event_shape,
        levels=vdm.levels,
        num_steps=num_steps,
        grid=grid,
        blocks=found,
        meta=meta,
    )
    content = file.pack(header, b"".join(payloads))
    return content, encoder.summary(header, len(content), seconds, network.seconds)


def read_header(content: bytes, vdm: Vdm) -> Header:
    """What a file says of itself, once it is found whole and made with this model.

    Raises VdmzError.
    """
    header, _ = file.unpack(content)
    if header.model != digest(vdm)[:16]:
        raise VdmzError(
            f"it was made with another model (SHA-256 {header.model.hex()}…, this one is "
            f"{digest(vdm)[:16].hex()}…); name the run and the checkpoint that it was made with"
        )
    if header.event_shape != tuple(vdm.event_shape) or header.levels != vdm.levels:
        raise VdmzError("its header promises other images than its model's; get it anew")
    return header


def decompress(
    content: bytes, vdm: Vdm, progress: Progress = lambda done, of: None
) -> tuple[np.ndarray, bytes]:
    """The images of a VDMZ file, uint8 [n, *event_shape], and its meta.

    `vdm` must be what the file was made with: besides the parameters, which are compared, the same
    functions `denoise` and `gamma`. JAX computes in 64 bits for the time of the call.

    Raises VdmzError, in this order: no VDMZ file, another version, cut short or damaged, another
    model, a machine that computes tables or network otherwise, images that aren't what they were.
    """
    header = read_header(content, vdm)
    _, payload = file.unpack(content)
    try:
        images = np.zeros((header.images, *header.event_shape), np.uint8)
    except MemoryError:
        raise VdmzError(f"its {header.images:,} images take more memory than there is") from None
    ends = np.cumsum([block.images for block in header.blocks])
    parts = np.split(images, ends[:-1])
    with jax.enable_x64(True):
        _decode(header, payload, vdm, parts, progress)
    for number, (part, block) in enumerate(zip(parts, header.blocks, strict=True)):
        if zlib.crc32(part.tobytes()) != block.crc:
            raise VdmzError(
                f"block {number} decodes to other images than were encoded (checksum): this "
                "machine computes the network otherwise, or the file is damaged"
            )
    return images, header.meta


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}.") from None


def _checked(images: np.ndarray, vdm: Vdm) -> np.ndarray:
    """As uint8. Raises ValueError unless the model can be of them."""
    images = np.asarray(images)
    if len(vdm.event_shape) != 3:
        raise ValueError(
            f"the model's event_shape must be (height, width, channels), got {vdm.event_shape}; "
            "an array without channels is images[..., None] with 1."
        )
    if images.shape[1:] != tuple(vdm.event_shape) or not len(images):
        wanted = ", ".join(map(str, vdm.event_shape))
        raise ValueError(f"images must be [n, {wanted}], the model's, got {list(images.shape)}.")
    if images.dtype.kind not in "ui" or not 2 <= vdm.levels <= 256:
        raise ValueError(f"images must be integers of 2 to 256 levels, got {images.dtype}.")
    if images.min() < 0 or images.max() >= vdm.levels:
        raise ValueError(
            f"images must lie in [0, {vdm.levels}), the model's levels, got {images.min()} to "
            f"{images.max()}."
        )
    return images.astype(np.uint8)


# ---- decoding ----


def _decode(
    header: Header, payload: memoryview, vdm: Vdm, parts: Sequence[np.ndarray], progress: Progress
) -> None:
    """Fill `parts`, the images of each block."""
    stacks = Stacks(len(header.blocks))
    start = 0
    for lane, block in enumerate(header.blocks):
        content = bytes(payload[start : start + block.size])
        start += block.size
        if block.mode == RAW:
            parts[lane][:] = np.frombuffer(content, np.uint8).reshape(parts[lane].shape)
            if parts[lane].max() >= header.levels:
                raise VdmzError("the payload is damaged: it holds levels that there are not")
        else:
            _load(stacks, lane, content)
    modes = np.array([block.mode for block in header.blocks])
    counts = np.array([block.images - block.seeds for block in header.blocks]) * (modes == CHAIN)
    if counts.any():
        coder = _coder(header, vdm)
        done = 0
        for number in reversed(range(counts.max())):
            active = number < counts
            try:
                found = coder.decode(stacks, header.dims, active)
            except Underflow as error:
                raise VdmzError("its payload is damaged: it ends too early") from error
            for lane in np.flatnonzero(active).tolist():
                image = found[lane].reshape(vdm.event_shape)
                parts[lane][header.blocks[lane].seeds + number] = image
            done += int(active.sum())
            progress(done, int(counts.sum()))
    for lane, block in enumerate(header.blocks):
        if block.mode != RAW:
            first = parts[lane][: block.seeds if block.mode == CHAIN else block.images]
            try:
                first[:] = fallback.pop(stacks, lane, first.shape, header.levels)
            except Underflow as error:
                raise VdmzError("its payload is damaged: it ends too early") from error
    if not stacks.empty().all():
        raise VdmzError(
            "bits are left over where none can be: this machine computes the network otherwise, or "
            "the file is damaged"
        )


def _load(stacks: Stacks, lane: int, content: bytes) -> None:
    try:
        stacks.load(lane, content)
    except ValueError as error:
        raise VdmzError("its payload is damaged: it holds no stack of bits") from error


def _coder(header: Header, vdm: Vdm) -> Coder:
    """Raises VdmzError if this machine makes of the model what another didn't."""
    levels = ladder.make(vdm.gamma, header.num_steps, header.levels, header.grid, vdm.reverse_var)
    if levels.digest[:4] != header.tables:
        raise VdmzError(
            "this machine computes other coding tables from the same model; decompress it on one "
            "like that which made it"
        )
    network = Network(vdm, levels, len(header.blocks))
    if network.probe() != header.probe:
        raise VdmzError(
            "this machine computes the network otherwise than the one that made it (a probe of its "
            "outputs differs); decompress it there, or with the versions that it had"
        )
    return Coder(levels, network)
