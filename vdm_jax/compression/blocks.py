"""Blocks of images, each on a stack of its own: seeds by the simple model, the others by the VDM."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vdm_jax.compression import simple_model
from vdm_jax.compression.ans import Stacks, Underflow
from vdm_jax.compression.bits_back import Coder
from vdm_jax.compression.file import CHAIN, FALLBACK, RAW, Block, Header, VdmzError
from vdm_jax.compression.network import Bound

__all__ = ["Encoded", "Progress", "decode", "encode"]

Progress = Callable[[int, int], None]
"""Is told the number of images that are done, and of how many."""


class Encoded(NamedTuple):
    """Blocks on their stacks."""

    blocks: list[Block]
    """Headers of the blocks."""
    payloads: list[bytes]
    """Bytes of each."""
    bits: np.ndarray
    """Bits of the VDM's images in the file, [n, 3]: what they added, their bound, their path's."""


def encode(
    parts: Sequence[np.ndarray], levels: int, coder: Coder, bound: Bound, progress: Progress
) -> Encoded:
    """Returns the blocks of `parts`, uint8 images each, with as few seeds as will do."""
    lengths = np.array([len(part) for part in parts])
    seeds, short = np.zeros(len(parts), int), np.ones(len(parts), bool)
    seeded = [b""] * len(parts)
    while short.any():
        # By an eighth, where there are so many: images of next to no bits would take ages.
        seeds = np.where(short, np.minimum(seeds + 1 + seeds // 8, lengths), seeds)
        for lane in np.flatnonzero(short).tolist():
            seeded[lane] = _simple(parts[lane][: seeds[lane]], levels)
        stacks = Stacks(len(parts))
        for lane, content in enumerate(seeded):
            stacks.load(lane, content)
        try:
            lanes, bits = _push_images(stacks, parts, seeds, coder, bound, progress)
            break
        except Underflow as error:
            short = error.lanes
    made = [
        _block(part, seeds[lane], stacks.dump(lane), levels) for lane, part in enumerate(parts)
    ]
    blocks, payloads = [block for block, _ in made], [payload for _, payload in made]
    by_vdm = np.array([block.mode == CHAIN for block in blocks])
    return Encoded(blocks, payloads, bits[by_vdm[lanes]])


def _simple(images: np.ndarray, levels: int) -> bytes:
    """Returns a stack that holds nothing but these images by the simple model."""
    stack = Stacks(1)
    simple_model.push(stack, 0, images, levels)
    return stack.dump(0)


def _push_images(
    stacks: Stacks,
    parts: Sequence[np.ndarray],
    seeds: np.ndarray,
    coder: Coder,
    bound: Bound,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Pushes the images behind the seeds: the first of all stacks at once, the second, ...

    Returns the lane of each, and its bits as in `Encoded`.
    """
    counts = np.array([len(part) for part in parts]) - seeds
    lanes, bits, done = [np.zeros(0, int)], [np.zeros((0, 3))], 0
    for number, active in _rounds(counts):
        rows = np.where(active, seeds + number, 0)
        batch = np.stack([part[row].reshape(-1) for part, row in zip(parts, rows, strict=True)])
        before = stacks.bits()
        bound.start(batch)
        coder.encode(stacks, batch, active, bound.observe)
        told = np.stack([stacks.bits() - before, *bound.bits()], axis=1)
        lanes.append(np.flatnonzero(active))
        bits.append(told[active])
        done += int(active.sum())
        progress(done, int(counts.sum()))
    return np.concatenate(lanes), np.concatenate(bits)


def _rounds(counts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields 0, 1, ... below the largest count, and which lanes have an image of that number."""
    return ((number, number < counts) for number in range(counts.max(initial=0)))


def _block(part: np.ndarray, seeds: int, coded: bytes, levels: int) -> tuple[Block, bytes]:
    """Returns what the file says of a block, and its payload: the shortest that there is."""
    pixels = part.tobytes()
    mode = CHAIN if seeds < len(part) else FALLBACK
    if mode == CHAIN and len(coded) >= len(pixels):
        mode, coded = FALLBACK, _simple(part, levels)
    if len(coded) >= len(pixels):
        mode, coded = RAW, pixels
    kept = int(seeds) if mode == CHAIN else 0
    return Block(mode, len(part), kept, len(coded), zlib.crc32(pixels)), coded


# ---- decoding ----


def decode(
    header: Header,
    payload: memoryview,
    parts: Sequence[np.ndarray],
    coder: Callable[[], Coder],
    progress: Progress,
) -> None:
    """Fills `parts`, the images of each block; `coder` is made if a block is by the VDM.

    Raises VdmzError if the payload is damaged, or this machine computes otherwise.
    """
    stacks = Stacks(len(parts))
    ends = np.cumsum([block.size for block in header.blocks]).tolist()
    for lane, (block, end) in enumerate(zip(header.blocks, ends, strict=True)):
        content = bytes(payload[end - block.size : end])
        if block.mode == RAW:
            parts[lane][:] = np.frombuffer(content, np.uint8).reshape(parts[lane].shape)
            if parts[lane].max() >= header.levels:
                raise VdmzError("the payload is damaged: it holds levels that there are not")
            continue
        try:
            stacks.load(lane, content)
        except ValueError as error:
            raise VdmzError("its payload is damaged: it holds no stack of bits") from error
    try:
        _pop_images(stacks, header, parts, coder, progress)
        for lane, (block, part) in enumerate(zip(header.blocks, parts, strict=True)):
            if block.mode != RAW:
                first = part[: block.seeds if block.mode == CHAIN else block.images]
                first[:] = simple_model.pop(stacks, lane, first.shape, header.levels)
    except Underflow as error:
        raise VdmzError("its payload is damaged: it ends too early") from error
    if not stacks.empty().all():
        raise VdmzError(
            "bits are left over where none can be: this machine computes the network otherwise, or "
            "the file is damaged"
        )


def _pop_images(
    stacks: Stacks,
    header: Header,
    parts: Sequence[np.ndarray],
    make: Callable[[], Coder],
    progress: Progress,
) -> None:
    blocks, done = header.blocks, 0
    counts = np.array([(b.images - b.seeds) * (b.mode == CHAIN) for b in blocks])
    if not counts.any():
        return
    coder = make()
    for number, active in reversed(list(_rounds(counts))):
        found = coder.decode(stacks, header.dims, active)
        for lane in np.flatnonzero(active).tolist():
            parts[lane][blocks[lane].seeds + number] = found[lane].reshape(header.event_shape)
        done += int(active.sum())
        progress(done, int(counts.sum()))
