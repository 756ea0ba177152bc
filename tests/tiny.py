"""Runs of seconds in this process, their flags, and their evaluation."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from experiments.configs import digits
from experiments.evaluate import evaluate as command
from vdm_jax.run import build
from vdm_jax.train import sharding


def config(**data: Any) -> ConfigDict:
    """60 steps of a tiny network on digits, with checkpoints of steps 20, 40 and 60."""
    config = digits.get_config()
    config.data.update(data)
    config.model.update(channels=16, num_blocks=1)
    config.optimizer.update(warmup_steps=5, ema_rate=0.9)
    config.train.update(steps=60, steps_per_call=10, log_every=60, checkpoint_every=20)
    config.eval.update(every=60, final_repeats=4)
    config.sample.update(every=60, num_steps=5, count=4)
    return config


def config_of(workdir: Path, **changes: Any) -> ConfigDict:
    """The settings of a run, with changes as train__steps=3."""
    config = ConfigDict(json.loads((workdir / "config.json").read_text())["config"])
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """Commands take one device: simulated ones, more than cores, keep each other waiting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "make_mesh", lambda *_: sharding.make_mesh(jax.devices()[:1]))
        yield


@contextlib.contextmanager
def jax_settings() -> Iterator[None]:
    """JAX's settings, which the block may change, return after it, also those of kept programs."""
    before = dict(jax.config.values)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            if jax.config.values[name] != value:
                jax.config.update(name, value)
        compilation_cache.reset_cache()


def evaluate(workdir: Path, *arguments: object) -> dict[str, Any]:
    """What `python -m experiments.evaluate --workdir=WORKDIR ARGUMENTS` finds."""
    return command(["experiments.evaluate", f"--workdir={workdir}", *map(str, arguments)])


def newest(workdir: Path) -> Path:
    """The folder of the last evaluation."""
    return max((workdir / "evaluation").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)


def strict_json(path: Path) -> Any:
    """The file as JSON proper, which has no NaN and no Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{path} holds {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


def flags(config: ConfigDict) -> list[str]:
    """The settings that aren't those of digits, as `python -m experiments.digits` takes them."""
    plain = digits.get_config()
    return [
        f"--config.{part}.{name}={value}"
        for part in ("data", "model", "optimizer", "train", "eval", "sample")
        for name, value in config[part].items()
        if value != plain[part][name]
    ]


def state_of(workdir: Path, step: int | None = None) -> Any:
    """The arrays of a checkpoint, by default the newest."""
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=("state", "meta")) as manager:
        item = ocp.args.Composite(state=ocp.args.StandardRestore())
        step = manager.latest_step() if step is None else step
        return jax.tree.map(np.asarray, manager.restore(step, args=item)["state"])


def last_state(workdir: Path) -> tuple[int, Any]:
    state = state_of(workdir)
    return int(state["step"]), state


def assert_same_run(a: Path, b: Path) -> None:
    (step, one), (_, other) = last_state(a), last_state(b)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert step == 60
    results = [json.loads((w / "result.json").read_text()) for w in (a, b)]
    assert results[0] == results[1]
