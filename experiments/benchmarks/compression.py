"""Rates and speed of compression by number of steps, beside other codecs: tables.

    python -m experiments.rates --workdir=RUN [--num_steps=10,50,100,250,1000] [--images=N] [INPUT]
    python -m experiments.rates --official=PATH --model=cifar10 INPUT

Compresses INPUT (a folder of pictures, an .npz, an .npy), or the run's test images, for each number
of steps T, and decodes them again: what all images take with everything in the file (gross), what
the VDM's images take (net), the bound of T steps on them at the same latents, and how fast. Then
what other codecs take, and what the entropy coder itself takes for a symbol, beside the library
constriction if that is installed. Leaves rates.json and rates.md in a new folder below --out, by
default RUN/rates.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import compress
from vdm_jax import compression
from vdm_jax.compression import Summary, Vdm, ans, tables
from vdm_jax.compression.file import MOST_BLOCKS, MOST_GRID
from vdm_jax.compression.ladder import DEFAULT_GRID, MOST_STEPS
from vdm_jax.evaluation import report as results
from vdm_jax.run import build as setup
from vdm_jax.run import cli, coding
from vdm_jax.run.cli import UserError

LANES = (1, 8, 64)
SYMBOLS = 3072


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    text, number, _ = cli.definers(values)
    coding.define_flags(values)
    text("num_steps", "T, or several", "10,50,100,250,1000")
    number("grid", "as of experiments.compress", DEFAULT_GRID, 1, MOST_GRID)
    number("blocks", "as of experiments.compress", None, 1, MOST_BLOCKS)
    number("images", "take so many of the images only, evenly over all")
    text("out", "where the results go; default RUN/rates")
    return values


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of steps."""

    num_steps: int
    size: int
    decoded_per_second: float
    summary: Summary


def rates(argv: list[str]) -> Mapping[str, Any]:
    """Parse `argv`, measure, print and write the tables; what rates.json holds is returned."""
    values = _flags()
    rest = cli.parse_flags(values, argv, __doc__, most=1)
    options: dict[str, Any] = {name: values[name].value for name in values if name != "help"}
    every = _several(options["num_steps"])
    if not (options["out"] or options["workdir"]):
        raise UserError("--out=DIR is missing: where the results go")
    options["split"] = None if rest else "test"
    vdm, name, pictures = compress.images_for(Path(rest[0]) if rest else None, options)
    images = compress.some(pictures.images, options["images"] or len(pictures.images))
    parent = setup.make_workdir(Path(options["out"] or Path(options["workdir"]) / "rates"), "out")
    rows = []
    for num_steps in every:
        rows.append(_row(images, vdm, num_steps, options))
        print(", ".join(_cells(rows[-1])), flush=True)
    chosen = f"{len(images)} of " * (len(images) < len(pictures.images))
    command = shlex.join(["python", "-m", "experiments.rates", *argv[1:]])
    best = min(rows, key=lambda row: row.size)
    text = "\n\n".join(
        [
            f"{chosen}{pictures.words}; {name}.\n\n    {command}",
            results.table(_HEAD, map(_cells, rows)),
            compress.compared(images, vdm.levels, best.size, f"VDMZ, T = {best.num_steps}"),
            results.table(("coder", *(f"{lanes} at once" for lanes in LANES)), _coder_cells()),
        ]
    )
    found = {"command": command, "rows": [_numbers(dataclasses.asdict(row)) for row in rows]}
    with cli.writing(parent):
        folder = results.new_folder(parent, 0)
        (folder / "rates.json").write_text(json.dumps(found, indent=1) + "\n")
        (folder / "rates.md").write_text(text + "\n")
    print(f"\n{text}\n\nwritten to {folder}")
    return found


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON, which has no NaN: null is what a row of too few images doesn't say."""
    told = {
        key: _numbers(value) if isinstance(value, dict) else value for key, value in row.items()
    }
    return {key: None if value != value else value for key, value in told.items()}


def _several(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and 1 <= int(word) <= MOST_STEPS for word in words):
        raise UserError(
            f"--num_steps={text}: wanted whole numbers from 1 to {MOST_STEPS}, as 50,100,250"
        )
    return [int(word) for word in words]


def _row(images: np.ndarray, vdm: Vdm, num_steps: int, options: Mapping[str, Any]) -> Row:
    try:
        content, summary = compression.compress(
            images, vdm, num_steps, options["grid"], options["blocks"]
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    told: list[tuple[int, float]] = []
    found, _ = compression.decompress(
        content, vdm, lambda done, _: told.append((done, time.perf_counter()))
    )
    if not np.array_equal(found, images):
        raise RuntimeError(f"T = {num_steps} did not decode to the same images")
    # From the first images on: what comes before is compiling.
    (first, began), (last, ended) = (told[0], told[-1]) if told else ((0, 0.0), (0, 0.0))
    speed = (last - first) / (ended - began) if last > first else float("nan")
    return Row(num_steps, len(content), speed, summary)


_HEAD = (
    "T", "bytes", "gross", "net", "bound", "net over bound", "by coding",
    "encoding, images/s", "decoding", "network's share",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    s = row.summary
    error = s.excess_error / s.bound
    return [
        str(row.num_steps),
        f"{row.size:,}",
        f"{s.gross:.4f}",
        f"{s.net:.4f}",
        f"{s.bound:.4f}",
        f"{100 * s.overhead:+.2f} % ± {100 * error:.2f} %",
        f"{100 * s.coding_loss:+.3f} %",
        f"{s.coded / s.seconds:.2f}",
        f"{row.decoded_per_second:.2f}",
        f"{100 * s.network_seconds / s.seconds:.0f} %",
    ]


# ---- the entropy coder by itself ----


def _coder_cells() -> list[list[str]]:
    """Microseconds to pop and push a symbol, of a Gaussian four parts of the grid wide."""
    with jax.enable_x64(True):
        table = tables.gaussian(np.array([4.0]), False)
        rng = np.random.default_rng(0)
        cells = [["ours, µs a symbol", *(f"{_ours(table, rng, lanes):.3f}" for lanes in LANES)]]
    if importlib.util.find_spec("constriction") is None:
        return cells
    one = f"{_constriction(importlib.import_module('constriction'), rng):.3f}"
    version = importlib.metadata.version("constriction")
    return [*cells, [f"constriction {version}, µs a symbol", one, "-", "-"]]


def _ours(table: tables.GaussianTable, rng: np.random.Generator, lanes: int) -> float:
    stacks, active = ans.Stacks(lanes), np.ones(lanes, bool)
    stacks.words = rng.integers(0, 2**32, (lanes, 2 * SYMBOLS), dtype=np.uint32)
    stacks.sizes[:] = 2 * SYMBOLS
    stacks.states[:] = 1 << 40
    rows = rng.integers(0, tables.FRACTIONS, (SYMBOLS, lanes))

    def once() -> None:
        symbols = stacks.pop(table.counts, rows, active)
        starts = table.counts[rows, symbols]
        stacks.push(starts, table.counts[rows, symbols + 1] - starts, active)

    return _fastest(once) / lanes


def _constriction(library: Any, rng: np.random.Generator) -> float:
    coder = library.stream.stack.AnsCoder(rng.integers(1, 2**32, 2 * SYMBOLS, dtype=np.uint32))
    model = library.stream.model.QuantizedGaussian(-40, 40)
    means, stds = rng.random(SYMBOLS), np.full(SYMBOLS, 4.0)

    def once() -> None:
        coder.encode_reverse(coder.decode(model, means, stds), model, means, stds)

    return _fastest(once)


def _fastest(once: Any, repeats: int = 30) -> float:
    """Microseconds of one symbol's way there and back."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    return 1e6 * min(times) / SYMBOLS


if __name__ == "__main__":
    cli.guard(lambda: rates(sys.argv))
