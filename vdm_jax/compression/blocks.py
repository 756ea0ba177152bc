"""Blocks of images, each on its own stack: seeds by the simple model, the others by the VDM."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vdm_jax.compression import simple_model
from vdm_jax.compression.ans import Stacks, Underflow
from vdm_jax.compression.bits_back import Coder
from vdm_jax.compression.file import CHAIN, FALLBACK, RAW, Block, Header, VdmzError
from vdm_jax.compression.network import Bound

Progress = Callable[[int, int], None]
"""Function that is told how many images of the VDM are done, and of how many."""


def encode(
    parts: Sequence[np.ndarray], levels: int, coder: Coder, bound: Bound, progress: Progress
) -> tuple[list[Block], list[bytes], np.ndarray]:
    """Encodes `parts`, uint8 images each, with as few seeds as will do.

    Returns the blocks and their bytes; and of the VDM's images in them the bits, float64 [n, 3]:
    what they added to their stacks, their bound, and what their latents cost (`Bound`).
    """
    lengths = np.array([len(part) for part in parts])
    seeds, short = np.zeros(len(parts), int), np.ones(len(parts), bool)
    seeded = [b""] * len(parts)
    while short.any():
        # By an eighth, where there are many: images of next to no bits would take ages.
        seeds = np.where(short, np.minimum(seeds + 1 + seeds // 8, lengths), seeds)
        for lane in np.flatnonzero(short).tolist():
            seeded[lane] = _simple(parts[lane][: seeds[lane]], levels)
        stacks = Stacks(len(parts))
        for lane, content in enumerate(seeded):
            stacks.load(lane, content)
        try:
            bits = _push_images(stacks, parts, seeds, coder, bound, progress)
            break
        except Underflow as error:
            short = error.lanes
    blocks, payloads = [], []
    for lane, (part, kept) in enumerate(zip(parts, seeds.tolist(), strict=True)):
        mode, payload = _shortest(part, stacks.dump(lane), kept < len(part), levels)
        crc = zlib.crc32(part.tobytes())
        blocks.append(Block(mode, len(part), kept * (mode == CHAIN), len(payload), crc))
        payloads.append(payload)
    by_vdm = np.array([block.mode == CHAIN for block in blocks])
    return blocks, payloads, bits[by_vdm & (np.arange(len(bits))[:, None] < lengths - seeds)]


def _simple(images: np.ndarray, levels: int) -> bytes:
    stack = Stacks(1)
    simple_model.push(stack, 0, images, levels)
    return stack.dump(0)


def _push_images(
    stacks: Stacks, parts: Any, seeds: np.ndarray, coder: Coder, bound: Bound, progress: Progress
) -> np.ndarray:
    """Pushes the images behind the seeds; returns the bits of each, as `encode`: [n, lanes, 3]."""
    lengths = np.array([len(part) for part in parts])
    counts, starts = lengths - seeds, np.cumsum(lengths) - lengths
    bits, done = np.zeros((counts.max(), len(parts), 3)), 0
    for number in range(len(bits)):
        active = number < counts
        rows = np.where(active, seeds + number, 0)
        batch = np.stack([part[row].reshape(-1) for part, row in zip(parts, rows, strict=True)])
        coder.choose(starts + rows)
        before = stacks.bits()
        bound.start(batch)
        coder.encode(stacks, batch, active, bound.observe)
        bits[number] = np.stack([stacks.bits() - before, *bound.bits()], axis=1)
        done += int(active.sum())
        progress(done, int(counts.sum()))
    return bits


def _shortest(part: np.ndarray, coded: bytes, by_vdm: bool, levels: int) -> tuple[int, bytes]:
    """Returns the mode and bytes of a block: `coded`, the simple model's alone, or raw pixels."""
    pixels = part.tobytes()
    if by_vdm and len(coded) >= len(pixels):
        by_vdm, coded = False, _simple(part, levels)
    if len(coded) >= len(pixels):
        return RAW, pixels
    return CHAIN if by_vdm else FALLBACK, coded


def decode(
    header: Header,
    payload: memoryview,
    make_coder: Callable[[], Coder],
    parts: Sequence[np.ndarray],
    progress: Progress,
) -> None:
    """Fills `parts`, the images of each block; a coder is made only if the VDM has some.

    Raises VdmzError if the payload is damaged, or this machine computes otherwise.
    """
    stacks, blocks, done = _loaded(header, payload, parts), header.blocks, 0
    counts = np.array([(block.images - block.seeds) * (block.mode == CHAIN) for block in blocks])
    seeds, lengths = (np.array([getattr(b, name) for b in blocks]) for name in ("seeds", "images"))
    starts = np.cumsum(lengths) - lengths
    if counts.any():
        coder = make_coder()
    try:
        for number in reversed(range(counts.max())):
            active = number < counts
            coder.choose(starts + np.where(active, seeds + number, 0))
            found = coder.decode(stacks, header.dims, active)
            for lane in np.flatnonzero(active).tolist():
                parts[lane][blocks[lane].seeds + number] = found[lane].reshape(header.event_shape)
            done += int(active.sum())
            progress(done, int(counts.sum()))
        for lane, (block, part) in enumerate(zip(blocks, parts, strict=True)):
            if block.mode != RAW:
                first = part[: block.seeds if block.mode == CHAIN else block.images]
                first[:] = simple_model.pop(stacks, lane, first.shape, header.levels)
    except Underflow as error:
        raise VdmzError("its payload is damaged: it ends too early") from error
    if not stacks.empty().all():
        raise VdmzError("bits are left over: this machine computes otherwise, or it is damaged")


def _loaded(header: Header, payload: memoryview, parts: Sequence[np.ndarray]) -> Stacks:
    """Returns the stacks of a payload, and fills the parts that are raw."""
    stacks, end = Stacks(len(parts)), 0
    for lane, (block, part) in enumerate(zip(header.blocks, parts, strict=True)):
        content, end = bytes(payload[end : end + block.size]), end + block.size
        if block.mode == RAW:
            part[:] = np.frombuffer(content, np.uint8).reshape(part.shape)
            if part.max() >= header.levels:
                raise VdmzError("the payload is damaged: it holds levels that there are not")
            continue
        try:
            stacks.load(lane, content)
        except ValueError as error:
            raise VdmzError("its payload is damaged: it holds no stack of bits") from error
    return stacks
