"""The trainings of a study, one after the other, and the flags that studies share."""

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import tables
from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.evaluation import likelihood
from vdm_jax.evaluation.bound import PLAIN, Draws
from vdm_jax.evaluation.likelihood import Row, Settings
from vdm_jax.evaluation.report import line
from vdm_jax.evaluation.subject import Subject
from vdm_jax.evaluation.variance_reduction import Evaluator
from vdm_jax.ode import Solver
from vdm_jax.run import build, cli, restore, training
from vdm_jax.train.model import Params
from vdm_jax.types import Key

REPEATS = 32  # draws of each image
CHUNK = 50  # steps of one compiled call
SOLVER = Solver("hutchinson", rtol=1e-3, atol=1e-3)  # of the ODE's likelihood


@dataclasses.dataclass
class Study:
    """The folder of a study's runs, its page in docs/, and what its trainings took."""

    workdir: Path
    page: Path
    scale: float  # factor of every number of steps
    mesh: Mesh
    minutes: float = 0.0

    def folder(self, name: str) -> Path:
        """Returns the folder of a run."""
        return self.workdir / "-".join(re.sub("[(),=]", "", name).split())

    def train(self, name: str, base: ConfigDict, changes: Mapping[str, Any]) -> tuple[Subject, Row]:
        """Returns the trained model, and its number of parameters, steps and minutes."""
        print(f"\n== {name}", flush=True)
        once = {"eval.final_repeats": 1}  # the bound that is reported is evaluated afterwards
        config = make_config(base, {**changes, **once}, self.scale)
        model, minutes = train(config, self.folder(name), self.mesh)
        self.minutes += minutes
        parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        return model, {"parameters": parameters, "steps": config.train.steps, "minutes": minutes}

    def trained(self, name: str) -> Subject:
        """Returns the model of a run that is finished."""
        return restore.from_workdir(self.folder(name), self.mesh)

    def report(
        self, found: Any, makers: Mapping[str, Callable], plots: Mapping[str, Callable]
    ) -> None:
        """Writes the numbers, and from them the page's tables and the plots in its folder."""
        files.write_json(self.workdir / f"{self.page.stem}.json", found)
        for name, plot in plots.items():
            plot(self.page.with_suffix("") / f"{name}.png", found)
        tables.replace(self.page, {name: make(found) for name, make in makers.items()})
        took = f"{self.minutes:.1f} minutes of training; " if self.minutes else ""
        print(f"{took}written to {self.page}")


def parse(argv: list[str], doc: str | None, page: str, names: Iterable[str]) -> Study:
    """Returns the study of --workdir, of the page in --out, with places for tables, and --scale."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder for the runs", flag_values=values)
    flags.DEFINE_string("out", "docs", f"folder that holds {page}", flag_values=values)
    flags.DEFINE_float("scale", 1.0, "factor of every number of steps", flag_values=values)
    options, _ = cli.parse_flags(values, argv, doc)
    if not 0 < values.scale < 1e6:
        raise UserError(f"--scale must be above 0 and below 1e6, got {values.scale}")
    if values.scale != 1 and Path(values.out).resolve() == Path("docs").resolve():
        raise UserError(f"--scale={values.scale:g} needs --out=DIR with a copy of docs/{page}")
    workdir, file = tables.places(options, page, names)
    build.make_workdir(file.with_suffix(""), "out")
    return Study(workdir, file, values.scale, build.make_mesh())


def make_config(base: ConfigDict, changes: Mapping[str, Any], scale: float = 1.0) -> ConfigDict:
    """Returns `base` with `changes` and `scale` times the steps, evaluated at the end."""
    steps = max(round(changes.get("train.steps", base.train.steps) * scale), 10)
    base.eval.update(every=steps, final_repeats=REPEATS)
    base.sample.update(every=steps, count=4, num_steps=10)
    base.update_from_flattened_dict(dict(changes))
    base.optimizer.warmup_steps = min(base.optimizer.warmup_steps, steps // 2)
    base.train.update(steps=steps, checkpoint_every=steps)
    return base


def train(config: ConfigDict, folder: Path, mesh: Mesh) -> tuple[Subject, float]:
    """Returns the trained model and the minutes it took; a finished run isn't trained again."""
    note, wanted = folder / "minutes.json", json.loads(config.to_json())
    done: dict[str, Any] = {"minutes": 0.0, "config": None}
    if note.exists():
        done = json.loads(note.read_text(encoding="utf-8"))
    if done["config"] != wanted:  # goes on with an unfinished run, and refuses other settings
        began = time.monotonic()
        try:
            training.train(config, folder)
            done["config"] = wanted
        finally:  # an interrupted run's minutes count too
            done["minutes"] += (time.monotonic() - began) / 60
            if folder.is_dir():
                files.write_json(note, done)
    return restore.from_workdir(folder, mesh), float(done["minutes"])


def minimise(
    loss: Callable[[Params, Key], jax.Array],
    params: Params,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: Key,
) -> tuple[Params, list[tuple[int, float]]]:
    """Returns parameters after `steps` steps on a loss, in nats, of them and of a key for each.

    Beside them the losses, as pairs (step, mean since the last). Raises UserError if they diverge.
    """

    def one(i: jax.Array, carry: Any) -> Any:
        params, state, total = carry
        value, grads = jax.value_and_grad(loss)(params, jax.random.fold_in(key, i))
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, total + value

    run = jax.jit(lambda a, b, *of: jax.lax.fori_loop(a, b, one, (*of, jnp.zeros(()))))
    state, losses = optimizer.init(params), list[tuple[int, float]]()
    for start in range(0, steps, CHUNK):
        stop = min(start + CHUNK, steps)
        params, state, total = run(start, stop, params, state)
        losses.append((stop, float(total) / (stop - start)))
        if stop % (10 * CHUNK) == 0 or stop == steps:
            print(f"step {stop}: training loss {losses[-1][1]:.3f} nats", flush=True)
    if not math.isfinite(losses[-1][1]):
        raise UserError(f"the loss is {losses[-1][1]}: training has diverged")
    return params, losses


def bound(subject: Subject, repeats: int = REPEATS, **fields: Any) -> tuple[Row, Draws, Subject]:
    """Returns the row of the bound on the test images, its draws, and the model with `fields`."""
    if fields:
        subject = subject._replace(model=subject.model.with_fields(**fields))
    draws, _ = Evaluator(PLAIN, jax.random.key(0), repeats).draw(subject)
    return likelihood.of_draws(draws, subject.bound, subject.groups), draws, subject


def likelihoods(subject: Subject, **more: Any) -> list[Row]:
    """Returns the rows of bound, ODE and what `more` asks for, on the first 64 test images."""
    asked = Settings(2 * REPEATS, ode_images=64, solver=SOLVER)._replace(**more)
    first = subject._replace(batch_size=64).first(64)
    found = likelihood.measure(first, asked, lambda row: print(line(row), flush=True))
    if found["failed"]:
        raise UserError(found["failed"])
    return list(found["rows"])
