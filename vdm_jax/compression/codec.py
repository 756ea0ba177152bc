"""Images to a VDMZ file and back: the order of all checks, and what it came to."""

import time
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax import checks
from vdm_jax.compression import blocks, chain, file
from vdm_jax.compression.bits_back import Coder
from vdm_jax.compression.blocks import Progress
from vdm_jax.compression.file import CHAIN, FALLBACK, RAW, Header, VdmzError
from vdm_jax.compression.network import Bind, Bound, Network, digest
from vdm_jax.errors import UserError
from vdm_jax.vdm import VDM

__all__ = ["Options", "Summary", "compress", "decompress", "read_header"]

_PER_BLOCK = 256  # images, of which two or three are seeds
_MOST_BLOCKS = 64


class Options(NamedTuple):
    """Choices that change a file's size and the time that it takes.

    Attributes:
      num_steps: number of steps T: more make the file smaller, and take longer.
      grid: number of parts into which the narrowest standard deviation of a level is divided.
      blocks: number of stacks that are coded in step, each beginning with some images of the simple
        model; by default one for each 256 images, up to 64.
    """

    num_steps: int = 100
    grid: int = chain.DEFAULT_GRID
    blocks: int | None = None


class Summary(NamedTuple):
    """Sizes and times of a compression; rates are in bits per dimension.

    Attributes:
      images: number of images: `coded` by the VDM, `seeds` by the simple model, and `raw`.
      net: rate that the VDM's images added to their stacks; NaN without such images.
      bound: variational bound of T steps on the same images, at the latents that were coded.
      path: rate of these latents without any rounding. Only chance is between it and the bound,
        only coding between it and `net`.
      excess_error: standard error of net - bound, over images.
      gross: rate of everything that is in the file, over all images.
      seconds, network_seconds: time that coding the VDM's images took; of that, the network's.
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
        """The relative difference of net and bound, by chance and by coding."""
        return self.net / self.bound - 1.0

    @property
    def coding_loss(self) -> float:
        """The relative difference of net and path, by coding."""
        return self.net / self.path - 1.0


_DEFAULTS = Options()


def _silent(done: int, of: int) -> None:
    pass


def compress(
    images: np.ndarray,
    bind: Bind,
    params: Any,
    settings: Mapping[str, Any] | None = None,
    options: Options = _DEFAULTS,
    meta: bytes = b"",
    progress: Progress = _silent,
) -> tuple[bytes, Summary]:
    """Returns the VDMZ file of images, and what it came to.

    For the time of the call JAX computes in 64 bits. Nothing is decoded here: to be sure, hand the
    bytes to `decompress` and compare.

        def bind(params):
            return VDM(partial(module.apply, params), gamma, event_shape=(32, 32, 3), levels=256)

        content, summary = compress(images, bind, params, options=Options(num_steps=250))
        images, meta = decompress(content, bind, params)

    Args:
      images: integers in [0, levels), [n, height, width, channels].
      bind: function parameters -> VDM, any network. Its output for one image must not depend on the
        others of a batch, of which there are as many as blocks; it is compiled, and must compute in
        the type of its input, float64 (in Flax modules dtype=None), without dropout.
      params: tree of arrays; taken to float64 for the network.
      settings: what else the network depends on and JSON can hold: a part of the model's digest, as
        the code of `bind` can't be.
      options: number of steps, and how images are laid out.
      meta: bytes that are kept in the file beside the images.
      progress: function that is told how many images of the VDM are done, and of how many.

    Raises:
      ValueError: images of another shape or other levels than the model's, numbers out of range, a
        gamma that doesn't rise, or a network whose output isn't finite, float64 and of the shape of
        its input.
    """
    vdm, levels = _bound(bind, params)
    images = _checked(images, vdm.event_shape, levels)
    num_steps, grid, count = options
    checks.count(num_steps, "num_steps", most=chain.MOST_STEPS)
    checks.count(grid, "grid", most=file.MOST_GRID)
    if count is None:
        count = min(max(len(images) // _PER_BLOCK, 1), _MOST_BLOCKS)
    most = min(len(images), file.MOST_BLOCKS)
    checks.count(count, "blocks")
    if count > most:
        raise UserError(f"blocks must be at most {most}, one for each image, got {count}")
    model, meta = digest(vdm, params, settings)[:16], bytes(memoryview(meta))
    if len(meta) > file.MOST_META:
        raise ValueError(f"meta has {len(meta):,} bytes; at most {file.MOST_META:,} are kept.")
    with jax.enable_x64(True):
        steps = chain.make(vdm.gamma, num_steps, levels, grid, vdm.reverse_var)
        network = Network(bind, params, steps, count)
        probe = network.probe()
        network.seconds, began = 0.0, time.perf_counter()
        parts = np.array_split(images, count)
        coder, bound = Coder(steps, network), Bound(vdm, steps)
        made, payloads, bits = blocks.encode(parts, levels, coder, bound, progress)
        seconds = time.perf_counter() - began
    header = Header(
        model=model,
        tables=steps.digest[:4],
        probe=probe,
        event_shape=vdm.event_shape,
        levels=levels,
        num_steps=num_steps,
        grid=grid,
        blocks=tuple(made),
        meta=meta,
    )
    content = file.pack(header, b"".join(payloads))
    return content, _summary(header, len(content), bits, (seconds, network.seconds))


def read_header(
    content: bytes, bind: Bind, params: Any, settings: Mapping[str, Any] | None = None
) -> Header:
    """Returns what a file says of itself, once it is found whole and made with this model.

    Raises VdmzError.
    """
    header, _ = file.unpack(content)
    vdm, levels = _bound(bind, params)
    found = digest(vdm, params, settings)[:16]
    if header.model != found:
        raise VdmzError(
            f"it was made with another model (SHA-256 {header.model.hex()}…, this one is "
            f"{found.hex()}…); name the run and the checkpoint that it was made with"
        )
    if header.event_shape != tuple(vdm.event_shape) or header.levels != levels:
        raise VdmzError("its header promises other images than its model's; get it anew")
    return header


def decompress(
    content: bytes,
    bind: Bind,
    params: Any,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = _silent,
) -> tuple[np.ndarray, bytes]:
    """Returns the images of a VDMZ file, uint8 [n, *event_shape], and its meta.

    The model must be the one that the file was made with: besides parameters and settings, which
    are compared, the same function `bind`.

    Raises VdmzError, in this order: no VDMZ file, another version, cut short or damaged, another
    model, a machine that computes tables or network otherwise, images that aren't what they were.
    """
    header = read_header(content, bind, params, settings)
    _, payload = file.unpack(content)
    try:
        images = np.zeros((header.images, *header.event_shape), np.uint8)
    except MemoryError:
        raise VdmzError(f"its {header.images:,} images take more memory than there is") from None
    parts = np.split(images, np.cumsum([block.images for block in header.blocks])[:-1])
    with jax.enable_x64(True):
        blocks.decode(header, payload, lambda: _coder(header, bind, params), parts, progress)
    for number, (part, block) in enumerate(zip(parts, header.blocks, strict=True)):
        if zlib.crc32(part.tobytes()) != block.crc:
            raise VdmzError(
                f"block {number} decodes to other images than were encoded (checksum): this "
                "machine computes the network otherwise, or the file is damaged"
            )
    return images, header.meta


def _bound(bind: Bind, params: Any) -> tuple[VDM, int]:
    """Returns the model with its parameters as they are, and its levels."""
    with jax.enable_x64(True):  # whatever it computes on the way, alike for all callers
        vdm = bind(params)
    if len(vdm.event_shape) != 3 or vdm.levels is None or not 2 <= vdm.levels <= 256:
        raise UserError(
            "the model must be of images [height, width, channels] with 2 to 256 levels, got shape "
            f"{vdm.event_shape} and levels {vdm.levels}"
        )
    return vdm, vdm.levels


def _checked(images: np.ndarray, event_shape: tuple[int, ...], levels: int) -> np.ndarray:
    """Returns images as uint8. Raises UserError unless the model can be of them."""
    images = np.asarray(images)
    if images.shape[1:] != tuple(event_shape) or not len(images):
        raise UserError(
            f"images must be [n, {', '.join(map(str, event_shape))}], as the model's, got "
            f"{list(images.shape)}: bring them to that size, or take a model of theirs"
        )
    if images.dtype.kind not in "ui" or images.min() < 0 or images.max() >= levels:
        raise UserError(
            f"images must be integers in [0, {levels}), the model's levels, got {images.dtype} "
            f"from {images.min()} to {images.max()}"
        )
    return images.astype(np.uint8)


def _coder(header: Header, bind: Bind, params: Any) -> Coder:
    """Returns what decodes. Raises VdmzError if this machine computes what another didn't."""
    vdm = bind(params)
    steps = chain.make(vdm.gamma, header.num_steps, header.levels, header.grid, vdm.reverse_var)
    if steps.digest[:4] != header.tables:
        raise VdmzError(
            "this machine computes other coding tables from the same model; decompress it on one "
            "like that which made it"
        )
    network = Network(bind, params, steps, len(header.blocks))
    if network.probe() != header.probe:
        raise VdmzError(
            "this machine computes the network otherwise than the one that made it (a probe of its "
            "outputs differs); decompress it there, or with the versions that it had"
        )
    return Coder(steps, network)


def _summary(header: Header, size: int, bits: np.ndarray, seconds: tuple[float, float]) -> Summary:
    coded = bits / header.dims
    net, bound, path = coded.mean(axis=0) if len(coded) else np.full(3, np.nan)
    excess = coded[:, 0] - coded[:, 1]
    error = excess.std(ddof=1) / len(coded) ** 0.5 if len(coded) > 1 else np.nan
    of = {mode: [b for b in header.blocks if b.mode == mode] for mode in range(3)}
    return Summary(
        images=header.images,
        coded=len(coded),
        seeds=sum(b.seeds for b in of[CHAIN]) + sum(b.images for b in of[FALLBACK]),
        raw=sum(b.images for b in of[RAW]),
        net=float(net),
        bound=float(bound),
        path=float(path),
        excess_error=float(error),
        gross=8.0 * size / (header.images * header.dims),
        seconds=seconds[0],
        network_seconds=seconds[1],
    )
