"""Blocks of images onto stacks: their seeds, the images behind them, and what it came to."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from vdm_jax.compression import fallback
from vdm_jax.compression.ans import Stacks, Underflow
from vdm_jax.compression.bits_back import Coder
from vdm_jax.compression.file import CHAIN, FALLBACK, RAW, Block, Header
from vdm_jax.compression.vdm import Bound, Vdm

__all__ = ["Encoder", "Progress", "Summary"]

Progress = Callable[[int, int], None]
"""Is told how many images are done, of how many."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a compression came to; bits are per dimension.

    Attributes:
      images: how many; of them `coded` by the VDM, `seeds` by the simple model, `raw` not at all.
      net: what the VDM's images added to their stacks, NaN without such images.
      bound: the variational bound of T steps on the same images, at the latents that were coded.
      path: what these latents cost without any rounding. Only chance is between it and the bound,
        only coding between it and net.
      excess_error: the standard error of net - bound, over images.
      gross: everything that is in the file, by all images.
      seconds, network_seconds: of coding the VDM's images; and of that, of the network's calls.
    """

    images: int
    coded: int
    seeds: int
    raw: int
    net: float
    bound: float
    path: float
    excess_error: float
    gross: float
    seconds: float
    network_seconds: float

    @property
    def overhead(self) -> float:
        """net / bound - 1, by chance and by coding."""
        return self.net / self.bound - 1.0

    @property
    def coding_loss(self) -> float:
        """net / path - 1, by coding."""
        return self.net / self.path - 1.0


class Encoder:
    """Codes blocks of images, each on a stack of its own, in step."""

    def __init__(
        self, vdm: Vdm, coder: Coder, parts: Sequence[np.ndarray], progress: Progress
    ) -> None:
        self._vdm, self._coder, self._parts, self._progress = vdm, coder, parts, progress
        self._stacks = Stacks(len(parts))
        self._seeds = np.zeros(len(parts), int)
        self._bits: list[tuple[float, ...]] = []  # of each image: its lane, net, bound, path

    def run(self) -> None:
        """Seed the stacks with as few images as will do, and encode the others."""
        short = np.ones(len(self._parts), bool)
        seeded = [b""] * len(short)
        while short.any():
            for lane in np.flatnonzero(short).tolist():
                # By an eighth, where there are so many: images of next to no bits would take ages.
                most = len(self._parts[lane])
                self._seeds[lane] += min(1 + self._seeds[lane] // 8, most - self._seeds[lane])
                seeded[lane] = self._simple(lane, self._seeds[lane])
            self._stacks = Stacks(len(short))
            for lane, content in enumerate(seeded):
                self._stacks.load(lane, content)
            try:
                self._images()
                return
            except Underflow as error:
                short = error.lanes

    def _simple(self, lane: int, count: int) -> bytes:
        """The first images of a part by the simple model."""
        stack = Stacks(1)
        fallback.push(stack, 0, self._parts[lane][:count], self._vdm.levels)
        return stack.dump(0)

    def _images(self) -> None:
        """All images behind the seeds, the first of all stacks at once, then the second, ..."""
        counts = np.array([len(part) for part in self._parts]) - self._seeds
        bound = Bound(self._vdm, self._coder.ladder)
        self._bits = []
        for number in range(counts.max()):
            active = number < counts
            rows = np.where(active, self._seeds + number, 0)
            batch = np.stack([part[row] for part, row in zip(self._parts, rows, strict=True)])
            batch = batch.reshape(len(batch), -1)
            before = self._stacks.bits()
            bound.start(batch)
            self._coder.encode(self._stacks, batch, active, bound.observe)
            net = self._stacks.bits() - before
            told = (np.arange(len(counts)), net, *bound.bits())
            self._bits += list(zip(*(part[active] for part in told), strict=True))
            self._progress(len(self._bits), int(counts.sum()))

    def block(self, lane: int) -> tuple[Block, bytes]:
        """What the file says of a block, and its payload."""
        part, seeds = self._parts[lane], int(self._seeds[lane])
        pixels, coded = part.tobytes(), self._stacks.dump(lane)
        mode = CHAIN if seeds < len(part) else FALLBACK
        if mode == CHAIN and len(coded) >= len(pixels):
            mode, coded = FALLBACK, self._simple(lane, len(part))
        if len(coded) >= len(pixels):
            mode, coded = RAW, pixels
        kept = seeds if mode == CHAIN else 0
        return Block(mode, len(part), kept, len(coded), zlib.crc32(pixels)), coded

    def summary(self, header: Header, size: int, seconds: float, network_seconds: float) -> Summary:
        """For all blocks."""
        by_vdm = np.array([block.mode == CHAIN for block in header.blocks])
        every = np.array(self._bits).reshape(-1, 4)
        coded = every[by_vdm[every[:, 0].astype(int)], 1:] / header.dims
        net, bound, path = coded.mean(axis=0) if len(coded) else (np.nan,) * 3
        excess = coded[:, 0] - coded[:, 1]
        error = excess.std(ddof=1) / len(coded) ** 0.5 if len(coded) > 1 else np.nan
        of = {mode: [b for b in header.blocks if b.mode == mode] for mode in range(3)}
        simple = sum(b.seeds for b in of[CHAIN]) + sum(b.images for b in of[FALLBACK])
        return Summary(
            images=header.images,
            coded=sum(b.images - b.seeds for b in of[CHAIN]),
            seeds=simple,
            raw=sum(b.images for b in of[RAW]),
            net=float(net),
            bound=float(bound),
            path=float(path),
            excess_error=float(error),
            gross=8.0 * size / (header.images * header.dims),
            seconds=seconds,
            network_seconds=network_seconds,
        )
