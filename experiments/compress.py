"""Compress images losslessly with a trained VDM, by bits-back coding.

    python -m experiments.compress --workdir=RUN INPUT -o FILE.vdmz [--num_steps=100]
    python -m experiments.compress --workdir=RUN --split=test -o FILE.vdmz
    python -m experiments.compress --official=PATH --model=cifar10 INPUT -o FILE.vdmz

INPUT is a folder of pictures, an .npz or an .npy, of the size and levels that the model was trained
on; experiments.decompress gives it back, pixel for pixel (README, Compressing; docs/vdmz.md has the
format). It needs the same model: the run's config.json and that checkpoint. More steps make the
file smaller and take longer. What was written is decoded and compared before it gets its name.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from vdm_jax import compression, files
from vdm_jax.compression import Summary, Vdm
from vdm_jax.compression.file import MOST_BLOCKS, MOST_GRID
from vdm_jax.compression.ladder import DEFAULT_GRID, MOST_STEPS
from vdm_jax.compression.other_codecs import sizes
from vdm_jax.data import DataError, pictures_io
from vdm_jax.data.pictures_io import Pictures
from vdm_jax.evaluation import report as results
from vdm_jax.run import cli, coding
from vdm_jax.run import restore as trained
from vdm_jax.run.cli import UserError
from vdm_jax.train import memory

COMPARED = 1000  # images, at most, that other codecs are tried on


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    _, number, choice = cli.definers(values)
    coding.define_flags(values)
    flags.DEFINE_string("output", None, "the file to write", short_name="o", flag_values=values)
    choice("split", "in place of INPUT: a part of the run's own images", ("train", "test"), None)
    number("num_steps", "T, the steps of the chain", 100, 1, MOST_STEPS)
    number(
        "grid", "parts into which the narrowest standard deviation of a step is divided",
        DEFAULT_GRID, 1, MOST_GRID,
    )  # fmt: skip
    number(
        "blocks", "stacks that are coded at once, each with a few images at a worse rate; default "
        "one for each 256 images, up to 64", None, 1, MOST_BLOCKS,
    )  # fmt: skip
    flags.DEFINE_bool("compare", True, "tell what other codecs need", flag_values=values)
    return values


def compress(argv: list[str]) -> Summary:
    """Parse `argv`, write the file, say what it came to."""
    values = _flags()
    rest = cli.parse_flags(values, argv, __doc__, most=1)
    options: dict[str, Any] = {name: values[name].value for name in values if name != "help"}
    out = coding.free(options["output"], "-o FILE.vdmz")
    if rest and options["split"]:
        raise UserError(f"INPUT ({rest[0]}) and --split exclude each other")
    if not rest and not options["split"]:
        raise UserError("wanted INPUT, a folder of pictures, an .npz or an .npy; or --split=test")
    vdm, name, pictures = images_for(Path(rest[0]) if rest else None, options)
    print(f"{pictures.words}; {name}, T = {options['num_steps']}", flush=True)
    content, summary, decoding = _coded(vdm, pictures, options)
    with files.writing(out) as partial, files.durable(partial) as file:
        file.write(content)
    print(_words(summary, content, pictures, decoding, out), flush=True)
    if options["compare"]:
        print(f"\n{compared(pictures.images, vdm.levels, len(content), 'this file')}")
    return summary


def images_for(path: Path | None, options: Mapping[str, Any]) -> tuple[Vdm, str, Pictures]:
    """The model that the flags name, its name, and the images of `path` or of --split.

    Raises UserError if they don't go together.
    """
    if options["official"]:  # made for images of any size
        if path is None:
            raise UserError("--split is of a run's images; with --official name INPUT")
        pictures = pictures_io.read(path)
        vdm, name = coding.load(options, pictures.images.shape[1:])
    else:
        vdm, name = coding.load(options)
        pictures = pictures_io.read(path, vdm.levels) if path else _split(options)
    found, wanted = pictures.images.shape[1:], tuple(vdm.event_shape)
    if found != wanted:
        by = "x".join
        raise UserError(
            f"the images are {by(map(str, found))}, but {name} is for {by(map(str, wanted))} "
            "(height x width x channels): bring them to that size, or train a model of theirs"
        )
    if options["blocks"] and options["blocks"] > len(pictures.images):
        raise UserError(
            f"--blocks={options['blocks']} is more than there are images, {len(pictures.images)}"
        )
    return vdm, name, pictures


def _split(options: Mapping[str, Any]) -> Pictures:
    """The images of the run, as an .npy that decompresses to them."""
    try:
        _, images = trained.images_of(Path(options["workdir"]), {})
    except DataError as error:
        raise UserError(str(error)) from error
    part = getattr(images, options["split"])
    words = f"{len(part)} {options['split']} images of {images.name}"
    return pictures_io.of_array(np.ascontiguousarray(part), words)


def _coded(
    vdm: Vdm, pictures: Pictures, options: Mapping[str, Any]
) -> tuple[bytes, Summary, float]:
    """The file, what it came to, and the seconds that it took to decode it once more."""
    try:
        with memory.exhausted(_too_large), coding.progress("encoded") as tell:
            content, summary = compression.compress(
                pictures.images, vdm, options["num_steps"], options["grid"], options["blocks"],
                pictures.meta, tell,
            )  # fmt: skip
        began = time.perf_counter()
        with memory.exhausted(_too_large), coding.progress("decoded") as tell:
            images, meta = compression.decompress(content, vdm, tell)
    except compression.VdmzError as error:
        raise UserError(f"nothing was written: on decoding, {error}") from error
    except MemoryError as error:
        raise _too_large(str(error)) from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"nothing was written: {error}") from error
    if not np.array_equal(images, pictures.images) or meta != pictures.meta:
        raise UserError("nothing was written: it did not decode to the same images")
    return content, summary, time.perf_counter() - began


def _too_large(said: str) -> UserError:
    return UserError(
        "nothing was written: coding takes more memory than there is; with fewer --blocks fewer "
        f"images go through the network at once ({said or 'no memory left'})"
    )


# ---- words ----


def _words(summary: Summary, content: bytes, pictures: Pictures, decoding: float, out: Path) -> str:
    raw = pictures.images.nbytes
    lines = [
        f"raw      {raw:,} bytes",
        f"written  {len(content):,} bytes, {summary.gross:.4f} bits per dim with all in it, "
        + (f"{raw / len(content):.2f} times less" if raw > len(content) else "no less than raw")
        + f": {out}",
    ]
    if summary.coded:
        error = 100 * summary.excess_error / summary.bound
        lines += [
            f"net      {summary.net:.4f} bits per dim, of {_counted(summary.coded)} by the VDM",
            f"bound    {summary.bound:.4f} bits per dim on the same images; net is "
            f"{100 * summary.overhead:+.2f} %"
            + f" ± {error:.2f} %" * (summary.coded > 1)
            + f" off; by coding alone {100 * summary.coding_loss:+.3f} %, the rest is chance",
        ]
    simple = []
    if summary.seeds:
        none = "none by the VDM, which has too few bits to borrow or would take more"
        why = "whose bits others borrow" if summary.coded else none
        simple.append(f"{_counted(summary.seeds)} by the simple model, {why}")
    if summary.raw:
        simple.append(f"{_counted(summary.raw)} kept as raw pixels: coded they would take more")
    lines += [f"besides  {'; '.join(simple)}"] * bool(simple)
    if summary.coded:
        share = summary.network_seconds / summary.seconds
        lines.append(
            f"speed    {summary.coded / summary.seconds:.2f} images/s encoding, network's share "
            f"{100 * share:.0f} %; {summary.images / decoding:.2f} images/s decoding"
        )
    return "\n".join(lines)


def _counted(images: int) -> str:
    return f"{images} image{'s' * (images != 1)}"


def compared(images: np.ndarray, levels: int, size: int, name: str) -> str:
    """What lossless codecs need for the same images, as a table that begins with our file."""
    chosen = some(images, COMPARED)
    note = "" if len(chosen) == len(images) else f" (on {len(chosen):,} of them)"
    rows = [(name, size / images.size)]
    left_out = ""
    try:
        rows += [(f"{one.name}{note}", one.bytes / chosen.size) for one in sizes(chosen, levels)]
    except (ValueError, RuntimeError, OSError) as error:  # theirs; ours is written, and stays
        left_out = f"\n\nOther codecs were not compared: {error}"
    cells = [[name, f"{8.0 * per_dim:.4f}"] for name, per_dim in rows]
    return results.table(("codec", "bits per dim"), cells) + left_out


def some(images: np.ndarray, most: int) -> np.ndarray:
    """At most so many of them, evenly over all."""
    if len(images) <= most:
        return images
    return np.ascontiguousarray(images[np.linspace(0, len(images) - 1, most).astype(int)])


if __name__ == "__main__":
    cli.guard(lambda: compress(sys.argv))
