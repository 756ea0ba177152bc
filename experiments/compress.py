"""Compress images losslessly with a trained VDM, by bits-back coding.

    python -m experiments.compress --workdir=RUN INPUT -o FILE.vdmz [--num_steps=100]
    python -m experiments.compress --workdir=RUN --split=test -o FILE.vdmz
    python -m experiments.compress --pretrained=photos --tile=64 FOLDER -o FILE.vdmz
    python -m experiments.compress --official=PATH --model=cifar10 INPUT -o FILE.vdmz

INPUT is a folder of pictures or an .npy, of the size and levels that the model was trained on;
experiments.decompress gives it back, pixel for pixel (docs/vdmz.md has the format). It needs the
same model: that checkpoint of the run, which holds its settings, or that file. More steps make the
file smaller and take longer. What was written is decoded and compared before it gets its name.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from vdm_jax import compression, data, files
from vdm_jax.compression import Options, Summary, chain, file, other_codecs
from vdm_jax.data import pictures_io
from vdm_jax.data.pictures_io import Pictures
from vdm_jax.errors import UserError
from vdm_jax.evaluation import report
from vdm_jax.run import build, cli, restore, vdmz
from vdm_jax.train import memory

COMPARED = 1000  # images, at most, that other codecs are tried on


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the model and of the chain but for T."""
    _, number, _ = cli.definers(values)
    restore.define_model_flags(values)
    about = "parts into which the narrowest standard deviation of a step is divided"
    number("grid", about, chain.DEFAULT_GRID, 1, file.MOST_GRID)
    about = "stacks coded at once, each with a few images at a worse rate; default one for each "
    number("blocks", f"{about}256 images, up to 64", None, 1, file.MOST_BLOCKS)


def compress(argv: list[str]) -> Summary:
    """Parses `argv`, writes the file, says what it came to."""
    values = flags.FlagValues()
    _, number, choice = cli.definers(values)
    define_flags(values)
    flags.DEFINE_string("output", None, "the file to write", short_name="o", flag_values=values)
    choice("split", "in place of INPUT: a part of the model's own images", ("train", "test"), None)
    about = "pixels a side of the squares that pictures of any sizes are cut into"
    number("tile", about, None, 1, 512)
    number("num_steps", "T, the steps of the chain", 100, 1, chain.MOST_STEPS)
    flags.DEFINE_bool("compare", True, "tell what other codecs need", flag_values=values)
    options, rest = cli.parse_flags(values, argv, __doc__, most=1)
    out = vdmz.free(options["output"], "-o FILE.vdmz")
    if bool(rest) == bool(options["split"]):
        raise UserError("wanted either INPUT, a folder of pictures or an .npy, or --split=test")
    if options["tile"] and not rest:
        raise UserError("--tile cuts the pictures of INPUT, a folder; --split has none to cut")
    model, name, pictures = images_for(Path(rest[0]) if rest else None, options)
    print(f"{pictures.words}; {name}, T = {options['num_steps']}", flush=True)
    chosen = Options(options["num_steps"], options["grid"], options["blocks"])
    content, summary, decoding = coded(model, pictures, chosen)
    with files.writing(out) as partial:
        files.write(partial, content)
    print("\n".join(_lines(summary, content, pictures, decoding, out)), flush=True)
    if options["compare"]:
        print(f"\n{compared(pictures.whole, len(content), 'this file')}")
    return summary


def images_for(path: Path | None, options: Mapping[str, Any]) -> tuple[vdmz.Source, str, Pictures]:
    """Returns the model that the flags name, its name, and the images of `path` or of --split."""
    if path is not None:
        pictures = pictures_io.read(path, options.get("tile"))
    elif options["official"] or not (options["workdir"] or options["pretrained"]):
        raise UserError("--split is of a run's images: name its --workdir, or INPUT")
    else:
        saved = restore.saved_by(options)
        _, images = restore.images_of(saved, {})
        part = np.ascontiguousarray(getattr(images, options["split"]))
        name = build.eval_name(saved.config) if options["split"] == "test" else "training"
        words = f"{len(part)} {name} images of {images.name}"
        pictures = pictures_io.of_array(part, words)
        if (condition := images.given(options["split"])) is not None:
            told = data.flagged(np.zeros(len(part)), condition)
            pictures = dataclasses.replace(pictures, conditioning=told)
    shape = pictures.images.shape[1:]
    columns = 0 if pictures.conditioning is None else pictures.conditioning.shape[1]
    model, name = vdmz.load(options, shape[:2] if pictures.grey_folder else shape, columns)
    if pictures.grey_folder and model.bind(model.params).event_shape == (*shape[:2], 3):
        pictures = pictures_io.tripled(pictures)  # as it was to train
    return model, name, pictures


def coded(model: vdmz.Source, pictures: Pictures, options: Options) -> tuple[bytes, Summary, float]:
    """Returns the file, what it came to, and the seconds that it took to decode it once more."""
    images, total = pictures.images, len(pictures.images)
    options = options._replace(conditioning=pictures.conditioning)
    try:
        with memory.exhausted(_too_large), vdmz.progress("encoded", total) as tell:
            content, summary = compression.compress(images, *model, options, pictures.meta, tell)
        began = time.perf_counter()
        with memory.exhausted(_too_large), vdmz.progress("decoded", total) as tell:
            found, meta = compression.decompress(content, *model, progress=tell)
    except compression.VdmzError as error:
        raise UserError(f"nothing was written: on decoding, {error}") from error
    if not np.array_equal(found, images) or meta != pictures.meta:
        raise UserError("nothing was written: it did not decode to the same images")
    return content, summary, time.perf_counter() - began


def _too_large(said: str) -> UserError:
    return UserError(
        "nothing was written: coding takes more memory than there is; with fewer --blocks fewer "
        f"images go through the network at once ({said})"
    )


def _lines(
    s: Summary, content: bytes, pictures: Pictures, decoding: float, out: Path
) -> Iterator[str]:
    raw, size = sum(image.nbytes for image in pictures.whole), len(content)
    less = f"{raw / size:.2f} times less" if raw > size else "no less than raw"
    yield f"raw      {raw:,} bytes"
    rate = f"{8 * size / raw:.4f} bits per dim with all in it"
    yield f"written  {size:,} bytes, {rate}, {less}: {out}"
    if s.coded:
        error = f" ± {100 * s.excess_error / s.bound:.2f} %" * (s.coded > 1)
        yield f"net      {s.net:.4f} bits per dim, of {_counted(s.coded)} by the VDM"
        yield (
            f"bound    {s.bound:.4f} bits per dim on the same images; net is "
            f"{100 * s.overhead:+.2f} %{error} off; by coding alone {100 * s.coding_loss:+.3f} %, "
            "the rest is chance"
        )
    if s.seeds:
        none = "none by the VDM, which has too few bits to borrow or would take more"
        why = "whose bits others borrow" if s.coded else none
        yield f"besides  {_counted(s.seeds)} by the simple model, {why}"
    if s.raw:
        yield f"besides  {_counted(s.raw)} kept as raw pixels: coded they would take more"
    if s.coded:
        share = f"network's share {100 * s.network_seconds / s.seconds:.0f} %"
        rate = f"{s.images / decoding:.2f} images/s decoding"
        yield f"speed    {s.coded / s.seconds:.2f} images/s encoding, {share}; {rate}"


def _counted(images: int) -> str:
    return f"{images} image{'s' * (images != 1)}"


def compared(images: np.ndarray | Sequence[np.ndarray], size: int, name: str) -> str:
    """Returns what lossless codecs need for the same images, as a table that begins with ours."""
    few = _rows(len(images), COMPARED)
    chosen = images[few] if isinstance(images, np.ndarray) else [images[row] for row in few]
    elements, compared = (sum(image.size for image in of) for of in (images, chosen))
    note = "" if len(chosen) == len(images) else f" (on {len(chosen):,} of them)"
    others, left_out = dict[str, int](), ""
    try:
        others = other_codecs.sizes(chosen)
    except (ValueError, RuntimeError, OSError) as error:  # theirs; ours is written, and stays
        left_out = f"\n\nOther codecs were not compared: {error}"
    rows = [(name, size / elements)]
    rows += [(f"{codec}{note}", count / compared) for codec, count in others.items()]
    cells = [[codec, f"{8.0 * per_dim:.4f}"] for codec, per_dim in rows]
    return report.table(("codec", "bits per dim"), cells) + left_out


def some(images: np.ndarray, most: int) -> np.ndarray:
    """Returns at most so many of the images, evenly over all."""
    rows = _rows(len(images), most)
    return images if len(rows) == len(images) else np.ascontiguousarray(images[rows])


def _rows(count: int, most: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, most)).astype(int)


if __name__ == "__main__":
    cli.guard(lambda: compress(sys.argv))
