"""Several trainings in a row, for a report."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax.evaluation import bound as evaluation
from vdm_jax.run import build as setup
from vdm_jax.run import cli
from vdm_jax.run import restore as trained
from vdm_jax.run import training as run
from vdm_jax.run.cli import UserError
from vdm_jax.run.restore import Restored
from vdm_jax.train.checkpoint import CheckpointError
from vdm_jax.train.model import Model

__all__ = ["REPEATS", "bound", "make_config", "parse", "train"]

REPEATS = 32  # draws of each image


def parse(argv: list[str], doc: str | None, report: str) -> tuple[Path, Path, float]:
    """--workdir and --out, as folders that are there, and --scale; `report` goes into --out."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder for the runs", flag_values=values)
    flags.DEFINE_string("out", "docs", f"folder for {report}", flag_values=values)
    flags.DEFINE_float("scale", 1.0, "factor of every number of steps", flag_values=values)
    cli.parse_flags(values, argv, doc)
    if not values.workdir:
        raise UserError("--workdir=DIR is missing: the folder for the runs")
    if not 0 < values.scale < 1e6:
        raise UserError(f"--scale must be above 0 and below 1e6, got {values.scale}")
    workdir = setup.make_workdir(Path(values.workdir))
    return workdir, setup.make_workdir(Path(values.out), "out"), values.scale


def make_config(base: ConfigDict, changes: Mapping[str, Any], scale: float = 1.0) -> ConfigDict:
    """`base` with `changes`, and `scale` times the steps; evaluated at the end unless they say."""
    steps = max(round(changes.get("train.steps", base.train.steps) * scale), 10)
    base.eval.update(every=steps, final_repeats=REPEATS)
    base.sample.update(every=steps, count=4, num_steps=10)
    base.update_from_flattened_dict(dict(changes))
    base.optimizer.warmup_steps = min(base.optimizer.warmup_steps, steps // 2)
    base.train.update(steps=steps, checkpoint_every=steps)
    return base


def train(config: ConfigDict, folder: Path, mesh: Mesh) -> tuple[Restored, float]:
    """The trained model, and how many minutes it took; the very same run isn't trained again."""
    note, wanted = folder / "minutes.json", json.loads(config.to_json())
    done: dict[str, Any] = {"minutes": 0.0, "config": None}
    if note.exists():
        done = _read(note)
    try:
        if done["config"] == wanted:
            print("is there already")
        else:  # goes on with an unfinished run, and refuses one of other settings by name
            began = time.monotonic()
            try:
                run.train(config, folder)
                done["config"] = wanted
            finally:  # an interrupted run's minutes count too
                done["minutes"] += (time.monotonic() - began) / 60
                if folder.is_dir():
                    note.write_text(json.dumps(done) + "\n")
        model = trained.from_workdir(folder, None, {}, mesh)
    except CheckpointError as error:
        raise UserError(str(error)) from error
    return model, float(done["minutes"])


def _read(note: Path) -> dict[str, Any]:
    try:
        done = json.loads(note.read_text())
        return {"minutes": float(done["minutes"]), "config": done["config"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{note} is damaged ({type(error).__name__}); remove it") from error


def bound(trained: Restored, model: Model, mesh: Mesh, repeats: int = REPEATS) -> evaluation.Draws:
    """Draws of the bound of every test image, of `model` with the parameters of `trained`."""
    step = evaluation.make_eval_step(model, mesh)
    batches = trained.on(mesh).batches()
    return evaluation.collect(step, trained.params, batches, mesh, jax.random.key(0), repeats)
