"""Do the step again that a run could not get past, and say what in it isn't finite.

    python -m experiments.replay --workdir=DIR [--step=N]

A run that stops because the loss or gradient was not finite leaves nonfinite.json: the first of
these steps. With --step=N it is step N, from the checkpoint of that very step. Nothing is changed.
"""

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import check, cli, run, setup, trained
from experiments.cli import UserError
from experiments.models import make_model
from vdm_jax.data import DataError, ImageData
from vdm_jax.train import loop, sharding, step
from vdm_jax.train.checkpoint import CheckpointError
from vdm_jax.train.model import Trainable
from vdm_jax.train.step import TrainState

SHOWN = 5
"""Names or rows of a kind that are told."""


def replay(argv: list[str]) -> dict[str, Any]:
    """Parse `argv`, do the step, print what came of it; returned are the numbers."""
    values = flags.FlagValues()
    text, number, _ = cli.definers(values)
    text("workdir", "folder of the run")
    number("step", "do this step, from its checkpoint; default that of nonfinite.json", low=0)
    cli.parse_flags(values, argv, __doc__)
    if not values.workdir:
        raise UserError("--workdir=DIR is missing: the folder of the run")
    workdir = Path(values.workdir)
    try:
        return _replay(workdir, values.step)
    except (DataError, CheckpointError) as error:
        raise UserError(str(error)) from error


def _replay(workdir: Path, wanted: int | None) -> dict[str, Any]:
    config, _ = trained.saved_config(workdir)
    check.config(config)
    number, recorded, checkpoint = _which(workdir, wanted)
    images = setup.load(config)
    mesh = setup.make_mesh(config.train.shard_params)
    model = make_model(config, images.event_shape, images.levels, images.num_classes)
    key = step.step_key(run.keys_of(config)["train"], number)
    words = np.asarray(jax.random.key_data(key)).tolist()
    if recorded is not None and recorded != words:
        raise UserError(
            f"{workdir / loop.NONFINITE} tells of a step with key {recorded}, but the run's "
            f"settings give {words}: it is of a run with another seed; delete it, or give --step"
        )
    state = _state(config, images, workdir, model, mesh, checkpoint)
    host_batch = run.stream(config, images)[number]
    batch = sharding.put(host_batch, mesh)
    print(f"step {number}, key {words}, from the state of step {int(state.step)}")
    found = _look(model, state, batch, key, config.train.accumulate)
    _print(found, host_batch["images"])
    if found["rows"]:
        print(f"the first operation that makes a NaN: {_where(model, state, batch, key)}")
    return found


def _which(workdir: Path, wanted: int | None) -> tuple[int, list[int] | None, int | None]:
    """The step, its key as it was recorded, None if it was asked for, and the checkpoint's step.

    The last is None where the run stopped at once, with its first state.
    """
    if wanted is not None:
        return wanted, None, wanted
    file = workdir / loop.NONFINITE
    if not file.is_file():
        raise UserError(
            f"there is no {file}: no run stopped there because of a loss or gradient that isn't "
            "finite. --step=N replays a step that has a checkpoint"
        )
    try:
        found = json.loads(file.read_text())
        checkpoint = None if found["checkpoint"] is None else int(found["checkpoint"])
        return int(found["step"]), [int(word) for word in found["key"]], checkpoint
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}: {error})") from error


def _state(
    config: ConfigDict,
    images: ImageData,
    workdir: Path,
    model: Trainable,
    mesh: jax.sharding.Mesh,
    checkpoint: int | None,
) -> TrainState:
    """Of the checkpoint of a step; None is the state before the first step."""
    template = step.abstract_state(model, run.make_optimizer(config), mesh)
    changed = cli.Options(allow_config_change=True)  # config.json has those it diverged with
    opened = run.open_checkpoints(config, images, workdir, changed)
    with contextlib.closing(opened) as checkpoints:
        if checkpoint is None:
            key = run.keys_of(config)["init"]
            return step.start(model, run.make_optimizer(config), key, mesh)
        return checkpoints.restore(template, checkpoint)


def _look(
    model: Trainable, state: TrainState, batch: Any, key: jax.Array, accumulate: int
) -> dict[str, Any]:
    """What isn't finite: parameters, rows of the batch, leaves of the gradient, by name."""
    grads, metrics = jax.jit(step.gradient(model, accumulate))(state.params, batch, key)
    terms = _terms(model, state, batch, key, accumulate)
    bad = np.flatnonzero(~np.isfinite(np.sum(list(terms.values()), axis=0)))
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "parameters": _not_finite(state.params),
        "gradient": _not_finite(grads),
        "leaves": len(jax.tree.leaves(grads)),
        "largest": _largest(state.params),
        "rows": bad.tolist(),
        "terms": terms,
    }


def _terms(
    model: Trainable, state: TrainState, batch: Any, key: jax.Array, accumulate: int
) -> dict[str, np.ndarray]:
    """The bound's terms of each row, [batch] nats, with the draws of the step."""
    of_rows = jax.jit(lambda rows, key: model.terms(state.params, rows, key, dropout=True))
    keys = [key] if accumulate == 1 else list(jax.random.split(key, accumulate))
    parts = [
        of_rows({name: value[part::accumulate] for name, value in batch.items()}, of_part)
        for part, of_part in enumerate(keys)
    ]
    # Rows part, part + accumulate, ...: back into the order of the batch.
    return {
        name: np.stack([np.asarray(getattr(part, name)) for part in parts], axis=1).ravel()
        for name in parts[0]._fields
    }


def _leaves(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf)


def _not_finite(tree: Any) -> list[str]:
    return [name for name, leaf in _leaves(tree) if not np.isfinite(leaf).all()]


def _largest(tree: Any) -> tuple[str, float]:
    sizes = [(name, float(np.abs(leaf).max(initial=0.0))) for name, leaf in _leaves(tree)]
    return max(sizes, key=lambda size: size[1])


def _print(found: dict[str, Any], images: np.ndarray) -> None:
    rows, count = found["rows"], len(images)
    said = ", ".join(f"{name} {value:g}" for name, value in found["metrics"].items())
    name, size = found["largest"]
    print(f"batch: {count} images of {images.min()} to {images.max()}; means: {said}")
    print(
        f"parameters not finite: {_some(found['parameters'])}; the largest is {size:g}, in {name}"
    )
    print(f"images whose bound is not finite: {len(rows)} of {count}")
    for row in rows[:SHOWN]:
        terms = ", ".join(f"{name} {of[row]:g}" for name, of in found["terms"].items())
        print(f"  row {row} of the batch: {terms} nats")
    bad = found["gradient"]
    print(f"leaves of the gradient not finite: {len(bad)} of {found['leaves']}: {_some(bad)}")
    if not rows and not bad:
        print("all is finite: this step is applied")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "none"


def _where(model: Trainable, state: TrainState, batch: Any, key: jax.Array) -> str:
    """File, line and operation where the forward pass first makes a NaN."""
    root = Path(__file__).parents[1]
    ours = (str(root / "vdm_jax"), str(root / "experiments"))
    try:
        with jax.disable_jit(), jax.debug_nans(True):
            jax.block_until_ready(model.terms(state.params, batch, key, dropout=True))
    except FloatingPointError as error:
        frames = traceback.extract_tb(error.__traceback__)
        frame = [frame for frame in frames if frame.filename.startswith(ours)][-1]
        return f"{Path(frame.filename).relative_to(root)}:{frame.lineno}: {frame.line}"
    return "none: a number grows beyond all bounds, without a NaN"


if __name__ == "__main__":
    cli.guard(lambda: replay(sys.argv))
