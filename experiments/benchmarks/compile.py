"""Programs of this code compiled for a TPU or a GPU, on a machine that has neither.

    make compile TARGET=v5p:2x2x1 [ARGS="--config=FILE --config.model.num_blocks=8"]
    python -m experiments.benchmarks.compile --target=v5p:2x2x1 [--config=FILE] [--effort=-1]

Compiles the training step, a batch of the evaluation and the sampler for a target: v4, v5e, v5p or
v6e with the chips of each axis, or h100 with a number of GPUs. Prints, for one device, the memory
and the program's size, the collective operations, and the time that the compiler estimates, by kind
of operation. Nothing is run, so no time is measured. --official-code=PATH adds the published code's
training step. `make compile` installs the compilers into an environment of their own.
"""

import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict, config_flags

from experiments.benchmarks import hlo, targets
from experiments.benchmarks.published_code import PublishedCode
from vdm_jax import files
from vdm_jax.data.image_data import ImageData
from vdm_jax.data.sources import LEVELS
from vdm_jax.errors import UserError
from vdm_jax.evaluation import report
from vdm_jax.evaluation.bound import make_eval_step
from vdm_jax.evaluation.subject import Subject
from vdm_jax.run import build, cli, experiment
from vdm_jax.run.config import check_config, check_devices
from vdm_jax.run.experiment import Experiment
from vdm_jax.run.models import make_model
from vdm_jax.train import memory, sharding
from vdm_jax.train.interrupts import Stop

CONFIG = Path(__file__).parent.parent / "configs" / "cifar10.py"
PROGRAMS = ("step", "evaluation", "sampler")
IMAGES = {"cifar10": "32x32x3", "photos32": "32x32x3", "mnist": "28x28x1", "digits": "8x8x1"}


class Row(NamedTuple):
    """One program, compiled for one device of a target."""

    name: str
    seconds: float  # of the processor, to compile it
    need: int  # bytes of memory, the program aside
    code: int  # bytes of the program
    summary: hlo.Summary

    def milliseconds(self, target: targets.Target) -> dict[str, float]:
        """Returns the time that the compiler estimates by kind of operation, 0 where it doesn't."""
        clock, cycles = target.chip.gigahertz or math.inf, self.summary.cycles
        return {kind: cycles.get(kind, 0) / (clock * 1e6) for kind in hlo.KINDS}


def run(argv: list[str]) -> list[Row]:
    """Parses `argv`, compiles, prints the tables; returns their rows."""
    options, config = _parse(argv)
    target = targets.find(options["target"])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # it can't load another's programs
    for name in ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort"):
        jax.config.update(name, options["effort"])
    try:
        mesh = sharding.make_mesh(target.devices, config.train.shard_params)
    except ValueError as error:
        raise UserError(f"--config.train.shard_params: {error}") from error
    check_devices(config, mesh)
    levels = options["levels"] or LEVELS.get(config.data.name, config.data.levels)
    of = described(config, mesh, options["image"], levels, options["classes"])
    folder = build.make_workdir(Path(options["workdir"])) if options["workdir"] else None
    rows = []
    programs = {name: program(of, name) for name in options["programs"]}
    if options["official-code"]:
        programs["published step"] = published(of, Path(options["official-code"]))
    for name, traced in programs.items():
        size = "x".join(map(str, options["image"]))
        print(f"compiling {name} for {target.name}, images of {size}", flush=True)
        rows.append(_compiled(name, traced, target, folder))
    print("", *tables(rows, target), sep="\n\n")
    if folder:
        files.write_json(folder / "compile.json", {"options": options, "rows": rows})
    return rows


def _parse(argv: list[str]) -> tuple[dict[str, Any], ConfigDict]:
    values = flags.FlagValues()
    text, number, _ = cli.definers(values)
    text("target", f"chips to compile for, as {targets.EXAMPLES}", "v5p:1x1x1")
    text("programs", "which of them", ",".join(PROGRAMS))
    text("image", "size and channels of the images, as 32x32x3; default: those of the data")
    number("levels", "of a pixel; default: those of the dataset", None, 2, 256)
    number("classes", "of the images, where config.data.class_labels is set", 1000)
    text("official-code", "a copy of the published repository")
    text("workdir", "folder for the programs' texts and the numbers; default: print only")
    about = "of the compiler, from -1 (memory and collectives alone are right) to 1"
    flags.DEFINE_float("effort", 0.0, about, -1.0, 1.0, flag_values=values)
    try:
        holder = config_flags.DEFINE_config_file(
            "config", str(CONFIG), "configuration file", flag_values=values, sys_argv=argv
        )
        options, _ = cli.parse_flags(values, argv, __doc__)
        config = ConfigDict(holder.value)
    except UserError:
        raise
    except Exception as error:  # a configuration file is a program: it may do this
        raise UserError(cli.one_line(error, argv)) from error
    check_config(config)
    sized = re.search(r"\d+x\d+$", config.data.name)  # a name may tell the images' size
    known = f"{sized[0]}x3" if sized else IMAGES.get(config.data.name, "")
    options["image"], names = options["image"] or known, "|".join(PROGRAMS)
    patterns = {"image": r"([1-9]\d*x){2}[13]", "programs": rf"({names})(,({names}))*"}
    for name, pattern in patterns.items():
        if not re.fullmatch(pattern, options[name]):
            said = f"--{name}={options[name]}: wanted such as {values[name].default or '32x32x3'}"
            raise UserError(said)
    options["image"] = tuple(map(int, options["image"].split("x")))
    options["programs"] = options["programs"].split(",")
    return {name: value for name, value in options.items() if "config" not in name}, config


def described(
    config: ConfigDict, mesh: Mesh | AbstractMesh, shape: tuple[int, ...], levels: int, classes: int
) -> Experiment:
    """Returns the experiment of a configuration with images of zeros, on devices that aren't here.

    Its programs can be traced and compiled; `classes` are those of labels, if it asks for any.
    """
    count = max(config.train.batch_size, config.eval.batch_size)
    zeros = np.broadcast_to(np.uint8(0), (count, *shape))
    labelled = config.data.class_labels
    labels = dict.fromkeys(("train", "test"), np.zeros(count, np.int32)) if labelled else None
    names = ("",) * classes if labelled else ()
    images = ImageData(config.data.name, zeros, zeros, levels, "", None, labels, names)
    model = make_model(config, images.event_shape, levels, images.condition, mesh)
    where = cast(Mesh, mesh)
    optimizer = experiment.make_optimizer(config)
    return Experiment(config, images, where, model, optimizer, Path(), Stop(where))


def program(of: Experiment, name: str) -> jax.stages.Traced:
    """Returns one of `PROGRAMS`, traced with the shapes of what a run gives it."""
    if name == "step":
        return experiment.traced_step(of)
    keys = experiment.keys_of(of.config)
    params = sharding.placed(of.mesh, jax.eval_shape(of.model.init, keys["init"]))
    if name == "sampler":
        return experiment.compiled_sampler(of, keys["sample"]).trace(params)
    subject = Subject(of.model, None, of.images, of.config.eval.batch_size, of.mesh)
    batch = jax.eval_shape(lambda: next(iter(subject.batches()())))
    key = jax.eval_shape(lambda: jax.random.key(0))
    step: Any = make_eval_step(of.model, of.mesh)
    return cast(jax.stages.Traced, step.trace(params, batch, key, 0, 1))


def published(of: Experiment, folder: Path) -> jax.stages.Traced:
    """Returns the published code's training step, data parallel, at the same sizes."""
    c, shape = of.config.model, of.images.event_shape
    if c.network != "unet" or shape != (32, 32, 3):
        raise UserError("--official-code: that network is the unet, for images of 32x32x3")
    code = PublishedCode(folder, c.channels, c.num_blocks)
    key = jax.eval_shape(lambda: jax.random.key(0))
    whole, split = sharding.replicated(of.mesh), sharding.split_over(of.mesh)
    images = jax.ShapeDtypeStruct((of.config.train.batch_size, *shape), jnp.uint8)
    # Its state is donated, which there it isn't: the smaller of its memories.
    step = jax.jit(
        code.train_step, donate_argnums=0, in_shardings=(whole, split, whole), out_shardings=whole
    )
    return step.trace(jax.eval_shape(code.init, key), images, key)


def _compiled(
    name: str, traced: jax.stages.Traced, target: targets.Target, folder: Path | None
) -> Row:
    lowered = traced.lower(lowering_platforms=(target.chip.platform,))
    began = time.process_time()
    with memory.exhausted(lambda said: UserError(f"{name} doesn't fit into {target.name}: {said}")):
        compiled = lowered.compile(compiler_options=target.options)
    seconds, text = time.process_time() - began, compiled.as_text() or ""
    if folder:
        files.write(folder / f"{name.replace(' ', '_')}.hlo", text)
    code = int(cast(Any, compiled.memory_analysis()).generated_code_size_in_bytes)
    need = memory.need(compiled, target.devices[0]) or 0
    return Row(name, seconds, need, code, hlo.summarise(text))


def tables(rows: Sequence[Row], target: targets.Target) -> tuple[str, str]:
    """Returns the table of sizes, and that of the estimated times by kind of operation."""
    head = (
        f"{target.name}, compiled", "peak memory, MiB", "of the chip's", "program, MiB",
        "collective operations, results in MiB", "compiled estimate, ms", "compiling, processor s",
    )  # fmt: skip
    by_name = {row.name: row for row in rows}
    cells = [_cells(row, by_name.get(f"published {row.name}"), target) for row in rows]
    sizes = report.table(head, cells)
    times = [[row.name, *map(_number, row.milliseconds(target).values())] for row in rows]
    return sizes, report.table(["compiled estimate, ms", *hlo.KINDS], times)


def _cells(row: Row, base: Row | None, target: targets.Target) -> list[str]:
    """Returns a line of the first table, with the ratio to `base` in brackets."""
    sent = row.summary.collectives.items()
    exchanged = ", ".join(f"{n} {kind} ({size / 2**20:.1f})" for kind, (n, size) in sent)
    loops = row.summary.unknown_loops

    def cell(value: Callable[[Row], float], spec: str) -> str:
        ratio = f" ({value(row) / value(base):.2f})" if base and value(base) else ""
        return f"{value(row):{spec}}{ratio}" if value(row) else "-"

    return [
        row.name,
        cell(lambda of: of.need / 2**20, ",.0f"),
        f"{row.need / target.chip.memory:.1%}",
        cell(lambda of: of.code / 2**20, ",.1f"),
        exchanged or "none",
        cell(lambda of: sum(of.milliseconds(target).values()), ".2f")
        + (f", {loops} loop(s) counted once" if loops else ""),
        f"{row.seconds:.0f}",
    ]


def _number(value: float) -> str:
    return f"{value:.2f}" if value else "-"


if __name__ == "__main__":
    cli.guard(lambda: run(sys.argv))
