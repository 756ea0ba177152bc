"""The trainings of a study, one after the other, and the flags that studies share."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import tables
from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.evaluation import likelihood
from vdm_jax.evaluation.bound import Draws, collect, make_eval_step
from vdm_jax.evaluation.likelihood import Row, Settings
from vdm_jax.evaluation.report import line
from vdm_jax.evaluation.subject import Subject
from vdm_jax.ode import Solver
from vdm_jax.run import build, cli, restore, training

REPEATS = 32  # draws of each image
SOLVER = Solver("hutchinson", rtol=1e-3, atol=1e-3)  # of the ODE's likelihood


def parse(
    argv: list[str], doc: str | None, page: str, names: Iterable[str]
) -> tuple[Path, Path, float]:
    """Returns --workdir, the page in --out, which has places for the tables, and --scale."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder for the runs", flag_values=values)
    flags.DEFINE_string("out", "docs", f"folder that holds {page}", flag_values=values)
    flags.DEFINE_float("scale", 1.0, "factor of every number of steps", flag_values=values)
    cli.parse_flags(values, argv, doc)
    if not values.workdir:
        raise UserError("--workdir=DIR is missing: the folder for the runs")
    if not 0 < values.scale < 1e6:
        raise UserError(f"--scale must be above 0 and below 1e6, got {values.scale}")
    if values.scale != 1 and values.out == "docs":
        raise UserError(f"--scale={values.scale:g} needs --out=DIR with a copy of docs/{page}")
    file = Path(values.out) / page
    tables.check(file, names)
    build.make_workdir(file.with_suffix(""), "out")
    return build.make_workdir(Path(values.workdir)), file, values.scale


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


def bound(subject: Subject, repeats: int = REPEATS, **fields: Any) -> tuple[Row, Draws, Subject]:
    """Returns the row of the bound on the test images, its draws, and the model with `fields`."""
    if fields:
        subject = subject._replace(model=subject.model.with_fields(**fields))
    step, key = make_eval_step(subject.model, subject.mesh), jax.random.key(0)
    draws = collect(step, subject.params, subject.batches(), subject.mesh, key, repeats)
    return likelihood.of_draws(draws, subject.bound), draws, subject


def likelihoods(subject: Subject, **more: Any) -> list[Row]:
    """Returns the rows of bound, ODE and what `more` asks for, on the first 64 test images."""
    asked = Settings(2 * REPEATS, ode_images=64, solver=SOLVER)._replace(**more)
    first = subject._replace(batch_size=64).first(64)
    found = likelihood.measure(first, asked, lambda row: print(line(row), flush=True))
    if found["failed"]:
        raise UserError(found["failed"])
    return list(found["rows"])
