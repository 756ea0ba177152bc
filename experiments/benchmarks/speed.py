"""Speed and memory of this code and, given a copy, of the published one, in one run.

    python -m experiments.benchmarks.speed --workdir=DIR [--official-code=PATH] [--out=docs]

Measures the CIFAR-10 network: compiling, a training step, its memory, a step of sampling.
Contenders do the same work and take turns, round after round; figures are medians. Replaces these
tables of benchmarks.md in --out, and leaves all numbers in DIR/bench.json.
"""

import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import tables
from experiments.benchmarks import contenders
from experiments.benchmarks.contenders import SHAPE, Contender, Row
from experiments.benchmarks.published_code import PublishedCode
from experiments.configs import cifar10
from vdm_jax import data, files
from vdm_jax.errors import UserError
from vdm_jax.evaluation import report
from vdm_jax.run import cli
from vdm_jax.train import memory

MODES: dict[str, dict[str, Any]] = {
    "ours, remat matmuls": {"remat": "matmuls"},
    "ours, remat blocks": {"remat": "blocks"},
    "ours, remat matmuls, bfloat16": {"remat": "matmuls", "dtype": "bfloat16"},
    "ours, remat blocks, bfloat16": {"remat": "blocks", "dtype": "bfloat16"},
}
_NARROW = "ours, remat matmuls, bfloat16"
ON_GPU = {f"{_NARROW}, cuDNN": MODES[_NARROW] | {"fused_attention": True}}


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    text, number, _ = cli.definers(values)
    text("workdir", "folder for the numbers")
    text("out", "folder that holds benchmarks.md", "docs")
    text("official-code", "a copy of the published repository")
    number("batch_size", "images of a step; default 4, on a GPU 128")
    number("channels", "of the network", 128)
    number("num_blocks", "of the network", 32)
    number("rounds", "in which contenders take turns", 5)
    text("modes", "pattern: of this code, only the modes that have it in their names", "")
    about = "of the device in bfloat16, for the share of it"
    flags.DEFINE_float("peak_tflops", None, about, lower_bound=1e-6, flag_values=values)
    return values


def bench(argv: list[str]) -> Mapping[str, Any]:
    """Parses `argv`, measures, and puts the numbers, which are returned, into the page."""
    values = _flags()
    options, _ = cli.parse_flags(values, argv, __doc__)
    workdir, page = tables.places(options, "benchmarks.md", TABLES)
    modes = _modes(options["modes"])
    jax.config.update("jax_enable_compilation_cache", False)  # what is timed here is compiling
    options["batch_size"] = options["batch_size"] or (128 if jax.default_backend() == "gpu" else 4)
    found: dict[str, Any] = {"options": options, "machine": _machine()}
    found |= {"steps": _contend(options, modes), "loader": _loader()}
    room = memory.room(jax.devices()[0])
    found["memory"] = room and room.most
    files.write_json(workdir / "bench.json", found)
    made = {name: make(found) for name, make in TABLES.items()}
    print("\n\n".join(made.values()))
    tables.replace(page, made)
    return found


def _modes(pattern: str) -> dict[str, dict[str, Any]]:
    """Returns the modes whose names have a pattern. Raises UserError if there is none."""
    known = MODES | (ON_GPU if jax.default_backend() == "gpu" else {})
    try:
        found = {name: changes for name, changes in known.items() if re.search(pattern, name)}
    except re.error as error:
        raise UserError(f"--modes={pattern} is no regular expression: {error}") from error
    if not found:
        raise UserError(f"--modes={pattern}: no mode has that; there are {', '.join(known)}")
    return found


def _contend(options: Mapping[str, Any], modes: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    configs = {name: _config(options, changes) for name, changes in modes.items()}
    # What a process compiles first takes longer: nothing of that is counted.
    contenders.ours(*next(iter(configs.items())))
    made: list[Contender] = []
    if options["official-code"]:
        size = options["channels"], options["num_blocks"]
        code = PublishedCode(Path(options["official-code"]), *size)
        made.append(contenders.published(code, options["batch_size"]))
    made += [contenders.ours(name, config) for name, config in configs.items()]
    for contender in made:  # what is done once only, at the first call, isn't measured
        contender.train()
        contender.sample()
    for number in range(options["rounds"]):
        for contender in made:
            contender.take_turn()
        print(f"round {number + 1} of {options['rounds']}", flush=True)
    flops = 3 * contenders.forward_operations(_config(options, {})) * options["batch_size"]
    return [contender.row(flops, options["peak_tflops"]) for contender in made]


def _config(options: Mapping[str, Any], changes: Mapping[str, Any]) -> ConfigDict:
    config = cifar10.get_config()
    config.train.batch_size = options["batch_size"]
    config.model.update(channels=options["channels"], num_blocks=options["num_blocks"], **changes)
    return config


def _loader(count: int = 20_000, batch: int = 128) -> float:
    """Returns the images that the training batches give a second, shuffled and augmented."""
    images = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), np.uint8)
    flips = data.augmented("flip", SHAPE)
    examples = {"images": images, "conditioning": None}
    stream = data.train_batches(examples, batch_size=batch, seed=0, transform=flips)
    with data.stacked(stream, start=0) as batches:
        next(batches)
        began = time.perf_counter()
        for _ in range(count // batch):
            next(batches)
    return (count // batch) * batch / (time.perf_counter() - began)


def _machine() -> str:
    device, info = jax.devices()[0], Path("/proc/cpuinfo")
    if device.platform != "cpu":
        return f"{device.device_kind}, jax {jax.__version__}"
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    named = re.search(r"^model name\s*: (.*)", text, re.M)
    name = named[1] if named else platform.machine()
    return f"{os.cpu_count()} cores of {name}, no accelerator, jax {jax.__version__}"


def _run(found: Mapping[str, Any]) -> str:
    options = found["options"]
    command = "python -m experiments.benchmarks.speed --workdir=DIR"
    command += " --official-code=PATH" if options["official-code"] else ""
    for name in ("batch_size", "channels", "num_blocks", "rounds"):
        command += f" --{name}={options[name]}"
    for name in ("modes", "peak_tflops"):
        command += f" --{name}={options[name]}" if options[name] else ""
    head = ("machine", "command", "images a second of the loader")
    return report.table(head, [(found["machine"], f"`{command}`", f"{found['loader']:,.0f}")])


def _steps(found: Mapping[str, Any]) -> str:
    """Returns the table of the contenders, with the ratio to the first row in brackets."""
    base = found["steps"][0]

    def cell(row: Row, name: str, spec: str, unit: int = 1) -> str:
        text = f"{row[name] / unit:{spec}}"
        return f"{text} ({row[name] / base[name]:.2f})" if row is not base and base[name] else text

    head = ["", "compiling, s", "of which the step", "step, s", "temporaries, MiB", "in all, MiB"]
    head += ["TFLOP/s", "share of peak", "a step of sampling, s"]
    columns = (("compile", ".1f"), ("compile_step", ".1f"), ("step", ".3g"))
    memory = (("temporaries", ",.0f", 2**20), ("need", ",.0f", 2**20))
    rows = []
    for row in found["steps"]:
        share = "-" if row["share"] is None else f"{row['share']:.0%}"
        cells = [cell(row, *column) for column in (*columns, *memory)]
        sampling = cell(row, "sample", ".3g")
        rows.append((row["name"], *cells, f"{row['tflops']:.2f}", share, sampling))
    return report.table(head, rows)


TABLES = tables.by_name(_run, _steps)


if __name__ == "__main__":
    os.environ["VDM_JAX_CACHE"] = "off"  # what is compiled here is to be compiled
    cli.guard(lambda: bench(sys.argv))
