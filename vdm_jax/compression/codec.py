"""Images to a VDMZ file and back: the order of all checks, and what it came to."""

import time
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax import checks, mixed, timestep
from vdm_jax.compression import blocks, chain, file, steps
from vdm_jax.compression.bits_back import Coder
from vdm_jax.compression.blocks import Progress
from vdm_jax.compression.file import RAW, Header, VdmzError
from vdm_jax.compression.network import Bind, Bound, Network, digest
from vdm_jax.errors import UserError
from vdm_jax.vdm import VDM

_PER_BLOCK = 256  # images, of which two or three are seeds
_MOST_BLOCKS = 64


class Options(NamedTuple):
    """Choices that change a file's size and the time that it takes, and what depends on images."""

    num_steps: int = 100  # T: more make the file smaller, and take longer
    grid: int = chain.DEFAULT_GRID  # parts of a level's narrowest standard deviation
    blocks: int | None = None  # number of stacks; None: one for each 256 images, up to 64
    conditioning: np.ndarray | None = None  # [n, k], of each image, for `bind`; kept in the file
    placed: bool = True  # put the steps where these images need them, else equally far in t


class Summary(NamedTuple):
    """Sizes and times of a compression; rates are in bits per dimension."""

    images: int
    coded: int  # by the VDM
    seeds: int  # by the simple model
    raw: int
    net: float  # what the VDM's images added to their stacks; NaN without such images
    bound: float  # the variational bound of T steps, at the latents that were coded
    path: float  # what these latents cost unrounded: between it and the bound is only chance
    excess_error: float  # standard error of net - bound, over images
    gross: float  # all that is in the file, over all images
    seconds: float  # that coding the VDM's images took
    network_seconds: float  # of them, the network's

    @property
    def overhead(self) -> float:
        """The relative difference of net and bound, by chance and by coding."""
        return self.net / self.bound - 1.0

    @property
    def coding_loss(self) -> float:
        """The relative difference of net and path, by coding."""
        return self.net / self.path - 1.0


def compress(
    images: np.ndarray,
    bind: Bind,
    params: Any,
    settings: Mapping[str, Any] | None = None,
    options: Options = Options(),  # noqa: B008
    meta: bytes = b"",
    progress: Progress = lambda done, of: None,
) -> tuple[bytes, Summary]:
    """Returns the VDMZ file of images, and what it came to; `decompress` it to be sure.

    Args:
      images: integers in [0, levels), [n, height, width, channels].
      bind: function parameters -> VDM, any network; with a conditioning (parameters, float32
        [batch, k]) -> VDM. Its output for one image must not depend on the
        others of a batch; it is compiled, and must compute in the type of its input, float64 (in
        Flax modules dtype=None), without dropout.
      params: tree of arrays; taken to float64 for the network.
      settings: what else the network depends on and JSON can hold, for the model's digest.
      options, meta: choices, and bytes that are kept in the file beside the images.
      progress: function that is told how many images of the VDM are done, and of how many.

    Raises ValueError for images that aren't the model's, numbers out of range, a gamma that doesn't
    rise, or a network whose output isn't finite or isn't float64.
    """
    vdm, levels = _bound(bind, params)
    one = timestep.end_points(vdm.gamma)[0].ndim == 0  # else steps can't be placed by one profile
    images = _checked(images, vdm.event_shape, levels)
    grid = options.grid
    told = _conditioning(options.conditioning, len(images))
    models = [vdm] if told is None else [vdm, bind(params, told[[0, 0]])]
    if any(len(jax.eval_shape(of.gamma, np.zeros(1))) > 1 for of in models):
        raise UserError("the model has a schedule of each image, by its condition; a file has one")
    count = _block_count(options, len(images))
    model, meta = digest(vdm, params, settings)[:16], bytes(memoryview(meta))
    if len(meta) > file.MOST_META:
        raise ValueError(f"meta has {len(meta):,} bytes; at most {file.MOST_META:,} are kept.")
    with jax.enable_x64(True):
        network = Network(bind, params, steps.knots(vdm.gamma), count, told)
        network.probe()  # compiles it
        network.seconds, began = 0.0, time.perf_counter()
        errors = network.errors(images, vdm.levels) if options.placed and one else None
        profile = b"" if errors is None else steps.profile(errors)
        placed = _steps(vdm, options.num_steps, profile)
        the_chain = chain.make(placed, vdm.levels, grid, tuple(vdm.event_shape))
        network.gammas = the_chain.gammas
        probe = network.probe()
        parts = np.array_split(images, count)
        coder, bound = Coder(the_chain, network, network.choose), Bound(vdm, the_chain)
        made, payloads, bits = blocks.encode(parts, levels, coder, bound, progress)
        seconds = time.perf_counter() - began
    tables, shape, numbers = the_chain.digest[:4], vdm.event_shape, (options.num_steps, grid)
    kept = b"" if told is None else told.astype("<f4").tobytes(), profile
    header = Header(model, tables, probe, shape, levels, *numbers, tuple(made), meta, *kept)
    content = file.pack(header, b"".join(payloads))
    return content, _summary(header, len(content), bits, (seconds, network.seconds))


def _block_count(options: Options, images: int) -> int:
    """Returns the number of blocks. Raises ValueError for options out of range."""
    checks.count(options.num_steps, "num_steps", most=chain.MOST_STEPS)
    checks.count(options.grid, "grid", most=file.MOST_GRID)
    if options.blocks is None:
        return min(max(images // _PER_BLOCK, 1), _MOST_BLOCKS)
    checks.count(options.blocks, "blocks")
    most = min(images, file.MOST_BLOCKS)
    if options.blocks > most:
        raise UserError(f"blocks must be at most {most}, one for each image, got {options.blocks}")
    return options.blocks


def read_header(
    content: bytes, bind: Bind, params: Any, settings: Mapping[str, Any] | None = None
) -> Header:
    """Returns a file's header. Raises VdmzError unless it is whole and made with this model."""
    header, _ = file.unpack(content)
    vdm, levels = _bound(bind, params)
    found = digest(vdm, params, settings)[:16]
    if header.model != found:
        said = f"another model (SHA-256 {header.model.hex()}…, this one is {found.hex()}…)"
        raise VdmzError(f"it was made with {said}; name the run and checkpoint that it is of")
    if header.event_shape != tuple(vdm.event_shape) or header.levels != levels:
        raise VdmzError("its header promises other images than its model's; get it anew")
    return header


def decompress(
    content: bytes,
    bind: Bind,
    params: Any,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, of: None,
) -> tuple[np.ndarray, bytes]:
    """Returns the images of a VDMZ file, uint8 [n, *event_shape], and its meta.

    Raises VdmzError, in this order: no VDMZ file, another version, cut short or damaged, another
    model, a machine that computes otherwise, images that aren't what they were.
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
            said = f"block {number} decodes to other images than were encoded (checksum)"
            raise VdmzError(f"{said}: this machine computes otherwise, or the file is damaged")
    return images, header.meta


def _bound(bind: Bind, params: Any) -> tuple[VDM, int]:
    """Returns the model with its parameters as they are, and its levels."""
    with jax.enable_x64(True):
        vdm = bind(params)
    levels, *others = mixed.kinds(vdm.levels)
    fits = len(vdm.event_shape) == 3 and not others
    if not fits or not isinstance(levels, int) or not 2 <= levels <= 256:
        wanted = "the model must be of images [height, width, channels] with 2 to 256 levels"
        raise UserError(f"{wanted}, got shape {vdm.event_shape} and levels {vdm.levels}")
    return vdm, levels


def _checked(images: np.ndarray, event_shape: tuple[int, ...], levels: int) -> np.ndarray:
    """Returns images as uint8. Raises UserError unless the model can be of them."""
    images = np.asarray(images)
    if images.shape[1:] != tuple(event_shape) or not len(images):
        wanted = f"[n, {', '.join(map(str, event_shape))}], as the model's"
        raise UserError(f"images must be {wanted}, got {list(images.shape)}: bring them to that")
    if images.dtype.kind not in "ui" or images.min() < 0 or images.max() >= levels:
        got = f"{images.dtype} from {images.min()} to {images.max()}"
        raise UserError(f"images must be integers in [0, {levels}), the model's levels, got {got}")
    return images.astype(np.uint8)


def _conditioning(given: np.ndarray | None, images: int) -> np.ndarray | None:
    """Returns it as float32. Raises UserError unless it is some numbers of each image."""
    if given is None:
        return None
    found = np.asarray(given, np.float32)
    if found.ndim != 2 or len(found) != images or not 0 < found.nbytes <= file.MOST_META:
        wanted = f"[{images}, k], of at most {file.MOST_META:,} bytes"
        raise UserError(f"the conditioning must be {wanted}, got {list(found.shape)}")
    return found


def _coder(header: Header, bind: Bind, params: Any) -> Coder:
    """Returns what decodes. Raises VdmzError if this machine computes what another didn't."""
    vdm = bind(params)
    placed = _steps(vdm, header.num_steps, header.profile)
    the_chain = chain.make(placed, vdm.levels, header.grid, tuple(vdm.event_shape))
    if the_chain.digest[:4] != header.tables:
        raise VdmzError("this machine computes other coding tables; take the one that made it")
    kept = np.frombuffer(header.conditioning, "<f4").astype(np.float32)
    told = kept.reshape(header.images, -1) if kept.size else None
    network = Network(bind, params, the_chain.gammas, len(header.blocks), told)
    if network.probe() != header.probe:
        said = "this machine computes the network otherwise (a probe of its outputs differs)"
        raise VdmzError(f"{said}; take the one that made it, or the versions that it had")
    return Coder(the_chain, network, network.choose)


def _steps(vdm: VDM, num_steps: int, profile: bytes) -> steps.Steps:
    if profile:
        return steps.placed(vdm.gamma, num_steps, vdm.reverse_var, profile)
    return steps.equal(vdm.gamma, num_steps, vdm.reverse_var)


def _summary(header: Header, size: int, bits: np.ndarray, seconds: tuple[float, float]) -> Summary:
    coded, count = bits / header.dims, len(bits)
    net, bound, path = map(float, coded.mean(axis=0) if count else np.full(3, np.nan))
    excess = coded[:, 0] - coded[:, 1]
    error = float(excess.std(ddof=1) / count**0.5) if count > 1 else np.nan
    raw = sum(block.images for block in header.blocks if block.mode == RAW)
    seeds, gross = header.images - count - raw, 8.0 * size / (header.images * header.dims)
    return Summary(header.images, count, seeds, raw, net, bound, path, error, gross, *seconds)
