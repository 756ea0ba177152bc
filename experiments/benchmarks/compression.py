"""Rates and speed of compression by number of steps: the tables of docs/compression.md.

    python -m experiments.benchmarks.compression --workdir=RUN [--num_steps=10,50] [INPUT]
    python -m experiments.benchmarks.compression --workdir=RUN --out=docs
    python -m experiments.benchmarks.compression --official=PATH --model=cifar10 INPUT

Compresses INPUT (a folder of pictures or an .npy), or the run's test images, for each number of
steps T, and decodes them again: what all images take with everything in the file (gross), what the
VDM's images take (net), the bound of T steps on them at the same latents, and how fast; then what
other codecs take. With --out the tables of compression.md in that folder are replaced.
"""

import dataclasses
import sys
from pathlib import Path

from absl import flags

from experiments import compress, tables
from vdm_jax.compression import Options, Summary, chain
from vdm_jax.data import pictures_io
from vdm_jax.errors import UserError
from vdm_jax.evaluation import report
from vdm_jax.run import cli

TABLES = ("rates", "codecs")


def measure(argv: list[str]) -> list[Summary]:
    """Parses `argv`, prints the tables; returns what each number of steps came to."""
    values = flags.FlagValues()
    text, number, _ = cli.definers(values)
    compress.define_flags(values)
    text("num_steps", "T, or several", "10,50,100,250,1000")
    text("out", "folder that holds compression.md; default: print only")
    number("images", "take so many of the images only, evenly over all")
    options, rest = cli.parse_flags(values, argv, __doc__, most=1)
    steps = _several(options["num_steps"])
    options["split"] = None if rest else "test"
    page = Path(options["out"]) / "compression.md" if options["out"] else None
    if page:
        tables.check(page, TABLES)
    model, name, pictures = compress.images_for(Path(rest[0]) if rest else None, options)
    count, told = options["images"] or len(pictures.images), pictures.conditioning
    chosen = compress.some(pictures.images, count)
    told = None if told is None else compress.some(told, count)
    if count < len(pictures.images):  # without the names of the others
        pictures = pictures_io.of_array(chosen, pictures.words)
    pictures = dataclasses.replace(pictures, conditioning=told)
    rows, sizes, summaries = [], dict[int, int](), []
    for num_steps in steps:
        given = Options(num_steps, options["grid"], options["blocks"])
        content, summary, decoding = compress.coded(model, pictures, given)
        rows.append(_cells(num_steps, len(content), summary, decoding))
        sizes[num_steps] = len(content)
        summaries.append(summary)
    best = min(steps, key=sizes.__getitem__)
    codecs = compress.compared(chosen, sizes[best], f"VDMZ, T = {best}")
    made = report.table(_HEAD, rows), codecs
    print(f"\n{len(chosen)} of {pictures.words}; {name}", *made, sep="\n\n")
    if page:
        tables.replace(page, dict(zip(TABLES, made, strict=True)))
    return summaries


def _several(text: str) -> list[int]:
    words, most = text.split(","), chain.MOST_STEPS
    if not all(word.isdecimal() and 1 <= int(word) <= most for word in words):
        raise UserError(f"--num_steps={text}: wanted whole numbers from 1 to {most}, as 50,100,250")
    return [int(word) for word in words]


_HEAD = (
    "T", "bytes", "gross", "net", "bound", "net over bound", "by coding",
    "encoding, images/s", "decoding", "network's share",
)  # fmt: skip


def _cells(num_steps: int, size: int, s: Summary, decoding: float) -> list[str]:
    rates = [f"{rate:.4f}" for rate in (s.gross, s.net, s.bound)]
    excess = f"{100 * s.overhead:+.2f} % ± {100 * s.excess_error / s.bound:.2f} %"
    speeds = [f"{s.coded / s.seconds:.2f}", f"{s.images / decoding:.2f}"]
    share = f"{100 * s.network_seconds / s.seconds:.0f} %"
    coding = f"{100 * s.coding_loss:+.3f} %"
    return [str(num_steps), f"{size:,}", *rates, excess, coding, *speeds, share]


if __name__ == "__main__":
    cli.guard(lambda: measure(sys.argv))
