"""Bits per dim against time and operations: the photos' network and the published one.

    python -m experiments.benchmarks.race --workdir=DIR [--minutes=120] [--out=docs]

Trains both on photos32 on one core, by themselves: the published network for so many processor
minutes of training, with its own optimiser and with ours, and the photos' network for a tenth of
them. Compiling and evaluating aren't counted. The learning rates of ours fall to zero at the end.
Each evaluates the average of its parameters on the same test images with the same draws. Replaces
the table of photos.md in --out and draws photos/race.png beside it. A training whose numbers are
in DIR already isn't done again.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments import tables
from experiments.benchmarks import contenders
from experiments.configs import cifar10, photos
from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.evaluation import report
from vdm_jax.run import build, cli, experiment
from vdm_jax.run.experiment import Experiment
from vdm_jax.run.models import make_model
from vdm_jax.train import plots, sharding, step
from vdm_jax.train.interrupts import Stop

Row = Mapping[str, Any]
Rows = list[Row]

MARKS = 8  # evaluations of each training
EVERY = 4  # of the test images, for each
TIMED = 5  # steps, to see how many there will be
PUBLISHED = {"channels": 64, "num_blocks": 4}  # its kind, at the photos network's size
OURS, SHARE = "three resolutions, Wiener filters", 0.1  # and its part of the others' minutes


def _contenders() -> dict[str, ConfigDict]:
    ours, published = photos.get_config(), cifar10.get_config("tiny")
    published.data = ours.data
    published.model.update(PUBLISHED)
    published.optimizer.ema_rate = ours.optimizer.ema_rate
    with_ours = ConfigDict(published.to_dict())
    with_ours.optimizer = ConfigDict(ours.optimizer.to_dict())
    configs = {
        OURS: ours,
        "published network": published,
        "published network, our optimiser": with_ours,
    }
    for config in configs.values():
        config.train.update(batch_size=16, steps_per_call=1)
        config.eval.update(repeats=1, batch_size=32)
    return configs


def race(argv: list[str]) -> Rows:
    """Parses `argv`, trains each contender, and puts table and figure into the page."""
    values = flags.FlagValues()
    text, _, _ = cli.definers(values)
    text("workdir", "folder for the numbers")
    text("out", "folder that holds photos.md", "docs")
    about = "processor minutes of training of the published network; ours gets a tenth"
    flags.DEFINE_float("minutes", 120.0, about, 1e-3, 1e5, flag_values=values)
    options, _ = cli.parse_flags(values, argv, __doc__)
    workdir, page = tables.places(options, "photos.md", TABLES)
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # before JAX begins its threads
    path, seconds = workdir / "race.json", 60.0 * options["minutes"]
    before = json.loads(path.read_text()) if path.exists() else {}
    found: Rows = before.get("rows", [])
    if before.get("minutes", options["minutes"]) != options["minutes"]:
        said = f"{path} is of a race of {before['minutes']:g} minutes, not {options['minutes']:g}"
        raise UserError(f"{said}: give another --workdir")
    for name, config in _contenders().items():
        if not any(row["name"] == name for row in found):
            found += _trained(name, config, seconds * (SHARE if name == OURS else 1.0), workdir)
            files.write_json(path, {"minutes": options["minutes"], "rows": found})
    tables.replace(page, {name: make(found) for name, make in TABLES.items()})
    _plot(found, page.with_suffix("") / "race.png")
    return found


def _trained(name: str, config: ConfigDict, seconds: float, workdir: Path) -> Iterator[Row]:
    """Yields a row at each mark of a training that takes so many processor seconds."""
    few = _experiment(config, workdir)
    state, call = _started(few)
    begun = time.process_time()
    state = _steps(few, call, state, 0, TIMED)
    each = (time.process_time() - begun) / TIMED
    images, key = few.images.train[: config.train.batch_size], jax.random.key(0)
    of_batch = jax.grad(lambda params: few.model.bind(params).elbo(key, images).total.mean())
    flops = contenders.operations(of_batch, state.params)
    config.train.steps = max(int(seconds / each), 2 * MARKS)
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, config.train.steps // 2)
    of = _experiment(config, workdir)
    state, call = _started(of)
    evaluate = experiment.evaluator(of, experiment.keys_of(config)["eval"])
    done, spent = 0, 0.0
    for mark in range(1, MARKS + 1):
        until = config.train.steps * mark // MARKS
        begun = time.process_time()
        state = _steps(of, call, state, done, until)
        spent, done = spent + time.process_time() - begun, until
        total = evaluate(state, False).total
        row = {"name": name, "seconds": spent, "step": done, "flops": done * flops}
        row |= {"bpd": total.mean, "standard_error": total.standard_error}
        print(row, flush=True)
        yield row


def _experiment(config: ConfigDict, workdir: Path) -> Experiment:
    images, mesh = build.load(config), sharding.make_mesh(jax.devices()[:1])
    images = dataclasses.replace(images, test=images.test[::EVERY], source=None)
    model = make_model(config, images.event_shape, images.levels, mesh=mesh)
    adamw = experiment.make_optimizer(config)
    return Experiment(config, images, mesh, model, adamw, workdir, Stop(mesh))


def _started(of: Experiment) -> tuple[step.TrainState, jax.stages.Compiled]:
    """Returns the first state and the compiled step."""
    key = experiment.keys_of(of.config)["init"]
    return step.start(of.model, of.optimizer, key, of.mesh), experiment.compiled_step(of)


def _steps(
    of: Experiment, call: jax.stages.Compiled, state: step.TrainState, start: int, stop: int
) -> step.TrainState:
    """Returns the state after steps start, ..., stop - 1."""
    with experiment.chunks(of.config, of.images)(start) as chunks:
        for _ in range(start, stop):
            state, _ = call(state, sharding.put(next(chunks), of.mesh, axis=1), 0, 1)
    return jax.block_until_ready(state)


def _table(found: Rows) -> str:
    head = ("network", "processor s", "steps", "TFLOP", "test bits per dim")
    cells = [
        [row["name"], f"{row['seconds']:,.0f}", f"{row['step']:,}", f"{row['flops'] / 1e12:,.1f}",
         report.estimate(row)]
        for row in found
    ]  # fmt: skip
    return report.table(head, cells)


def _plot(found: Rows, path: Path) -> None:
    title = "photos32: bits per dim of the test images against what the training took"
    path.parent.mkdir(exist_ok=True)
    with plots.figure(path, title, (9.0, 4.0), (1, 2)) as axes:
        for axis, key, label in zip(
            axes, ("seconds", "flops"), ("processor seconds", "operations"), strict=True
        ):
            for name in dict.fromkeys(row["name"] for row in found):
                rows = [row for row in found if row["name"] == name]
                took, bpd = [row[key] for row in rows], [row["bpd"] for row in rows]
                axis.plot(took, bpd, marker="o", label=name)
            axis.set(xscale="log", xlabel=label, ylabel="test bits per dim")
            axis.set_ylim(top=1.3 * max(row["bpd"] for row in found))  # the legend lies above


TABLES = {"race": _table}

if __name__ == "__main__":
    cli.guard(lambda: race(sys.argv))
