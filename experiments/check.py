"""Refuses a configuration that can't be run, by the name of the setting."""

import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.cli import UserError
from experiments.configs import base
from vdm_jax.train import sharding

__all__ = ["config", "sizes"]

POSITIVE = {
    "train": (
        "steps",
        "batch_size",
        "accumulate",
        "steps_per_call",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
    ),
    "eval": ("every", "batch_size", "repeats", "final_repeats"),
    "sample": ("every", "count", "num_steps"),
    "optimizer": ("learning_rate", "eps"),
    "data": ("levels",),
    "model": ("channels", "num_blocks"),
}
NOT_NEGATIVE = {
    "optimizer": ("warmup_steps", "weight_decay"),
    "data": ("validation",),
}
BELOW_ONE = {"optimizer": ("b1", "b2", "ema_rate"), "model": ("dropout",)}


def config(config: ConfigDict) -> None:
    """Raise UserError for a missing or unknown name, a wrong type, or a number out of range."""
    _compare(config.to_dict(), base.get_config().to_dict(), "config.")
    for ranges, wanted, holds in (
        (POSITIVE, "be finite and above 0", lambda value: value > 0),
        (NOT_NEGATIVE, "not be negative", lambda value: value >= 0),
        (BELOW_ONE, "lie in [0, 1)", lambda value: 0 <= value < 1),
    ):
        for part, names in ranges.items():
            for name in names:
                value = config[part][name]
                if not (holds(value) and math.isfinite(value)):
                    raise UserError(f"config.{part}.{name} must {wanted}, got {value}")
    clip = config.optimizer.clip_norm
    if clip is not None and not clip > 0:
        raise UserError(f"config.optimizer.clip_norm must be above 0 or None, got {clip}")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"config.seed must lie in [0, 2^32), got {config.seed}")


def sizes(config: ConfigDict, mesh: Mesh) -> None:
    """Raise UserError for batch sizes that can't be split over the devices."""
    for name, size, accumulate in (
        ("train", config.train.batch_size, config.train.accumulate),
        ("eval", config.eval.batch_size, 1),
    ):
        try:
            sharding.check_batch_size(size, mesh, accumulate)
        except ValueError as error:
            raise UserError(f"config.{name}.batch_size: {error}") from error


def _compare(given: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str) -> None:
    """Names and types of a configuration file against those of `configs/base.py`."""
    for name in sorted(given.keys() | wanted.keys()):
        if name not in wanted:
            raise UserError(f"{prefix}{name} is no setting; see experiments/configs/base.py")
        if name not in given:
            raise UserError(f"{prefix}{name} is missing; start from base.get_config()")
        a, b = given[name], wanted[name]
        if isinstance(b, Mapping) and isinstance(a, Mapping):
            _compare(a, b, f"{prefix}{name}.")
        elif None not in (a, b) and type(a) is not type(b):
            raise UserError(f"{prefix}{name} must be {type(b).__name__}, got {a!r}")
