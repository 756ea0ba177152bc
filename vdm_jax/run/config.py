"""Refuses a configuration that can't be run, by the name of the setting."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax import timestep
from vdm_jax.nn.blocks import REMATS
from vdm_jax.nn.features import HEADS
from vdm_jax.parameterization import REVERSE_VARS
from vdm_jax.run import defaults as base
from vdm_jax.run.cli import MOST, UserError
from vdm_jax.train import sharding

__all__ = ["config", "model", "training"]

POSITIVE = {
    "train": (
        "steps",
        "batch_size",
        "accumulate",
        "shard_params",
        "steps_per_call",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "max_skipped",
    ),
    "eval": ("every", "batch_size", "repeats", "final_repeats"),
    "sample": ("every", "count", "num_steps"),
    "optimizer": ("learning_rate", "eps"),
    "data": ("levels",),
    "model": ("channels", "num_blocks"),
    "hierarchy": ("latent_size",),
}
NOT_NEGATIVE = {
    "optimizer": ("warmup_steps", "weight_decay"),
    "data": ("validation",),
}
BELOW_ONE = {"optimizer": ("b1", "b2", "ema_rate"), "model": ("dropout",)}
OR_NONE = {"optimizer": ("clip_norm",), "model": ("num_steps",)}
GAMMA = 40.0  # gamma's end points lie in +-GAMMA: there exp of their difference is a float32
LARGEST = {
    "train": {"batch_size": 10**6, "steps_per_call": 10**5},
    "eval": {"batch_size": 10**6, "repeats": MOST, "final_repeats": MOST},
    "sample": {"count": 10**5, "num_steps": MOST},
    "model": {"channels": 2**16, "num_blocks": 1000, "num_steps": timestep.most_steps("float32")},
    "hierarchy": {"depth": 1000, "latent_size": 2**20},
}
"""What would only run out of memory, or of patience; what isn't here is a 32-bit integer."""


def config(config: ConfigDict) -> None:
    """Raise UserError for a missing or unknown name, a wrong type, or a number out of range."""
    _compare(config, base.get_config(), "config.")
    for ranges, wanted, holds in (
        (POSITIVE, "be finite and above 0", lambda value: value > 0),
        (OR_NONE, "be finite and above 0, or None", lambda value: value is None or value > 0),
        (NOT_NEGATIVE, "not be negative", lambda value: value >= 0),
        (BELOW_ONE, "lie in [0, 1)", lambda value: 0 <= value < 1),
    ):
        for part, names in ranges.items():
            for name in names:
                value = config[part][name]
                if not (holds(_single(value)) and (value is None or math.isfinite(_single(value)))):
                    raise UserError(f"config.{part}.{name} must {wanted}, got {value}")
    decay, steps = config.optimizer.decay, config.optimizer.decay_steps
    # A run without decay has 0 in its config.json.
    if steps is not None and steps <= 0 and (decay, steps) != ("none", 0):
        raise UserError(f"config.optimizer.decay_steps must be above 0, or None, got {steps}")
    _check_largest(config)
    low, high = config.model.gamma_min, config.model.gamma_max
    if not -GAMMA <= low < high <= GAMMA:
        raise UserError(
            f"config.model.gamma_min must be below gamma_max, both in [{-GAMMA:g}, {GAMMA:g}], got "
            f"{low} and {high}"
        )
    if not 0 <= config.seed < 2**32:
        raise UserError(f"config.seed must lie in [0, 2^32), got {config.seed}")


def _single(value: Any) -> Any:
    """A float as training has it, in single precision: 1 - 1e-9 is 1 there, and 1e-50 is 0."""
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _check_largest(config: ConfigDict) -> None:
    for part, fields in config.to_dict().items():
        for name, value in fields.items() if isinstance(fields, Mapping) else ():
            most = LARGEST.get(part, {}).get(name, 2**31 - 1)
            if isinstance(value, int) and value > most:
                raise UserError(f"config.{part}.{name} must be at most {most}, got {value}")


def model(config: ConfigDict, levels: int, num_classes: int) -> None:
    """Raise UserError for an unknown word, or settings of the model that don't go together."""
    c = config.model
    for name, known in (
        ("network", ("unet", "resnet", "mlp")),
        ("head", HEADS),
        ("attention", ("middle", "all")),
        ("remat", REMATS),
        ("dtype", ("float32", "bfloat16")),
        ("gamma_objective", ("bound", "variance")),
        ("timesteps", timestep.METHODS),
        ("reverse_var", REVERSE_VARS),
        ("decoder", ("discretised", "density")),
        ("process", ("gaussian", "binomial")),
    ):
        if c[name] not in known:
            raise UserError(f"config.model.{name} is {c[name]!r}; known: {', '.join(known)}")
    _check_compute(c)
    held = c.gamma == "monotone" and c.gamma_pinned and not c.learn_end_points
    if c.decoder == "density" and not (held or c.gamma == "fixed"):
        raise UserError(
            "config.model.decoder is 'density', for which there is no best gamma_0: pixels gain by "
            "any lower one. Hold the end points: --config.model.gamma=fixed, or monotone and "
            "pinned with --config.model.learn_end_points=False"
        )
    if c.gamma_objective == "variance":
        _check_variance(c)
    if c.reverse_var != "posterior" and c.num_steps is None and config.hierarchy.depth is None:
        raise UserError(
            f"config.model.reverse_var is {c.reverse_var!r}, which in continuous time makes no "
            "difference: give a number of steps, --config.model.num_steps=T"
        )
    binomial = c.process == "binomial"
    if binomial != (c.head == "logits"):
        raise UserError(
            f"config.model.head is {c.head!r} and process {c.process!r}: the head logits and the "
            "process binomial go together, and neither with another"
        )
    if binomial:
        _check_binomial(config, levels)
    if config.hierarchy.depth is not None:
        _check_hierarchy(config, num_classes)
    else:
        unset = ("latent_size", 16), ("data_size", False), ("fixed_encoder", False)
        for name, value in (*unset, ("ends_at_normal", False)):
            if config.hierarchy[name] != value:
                raise UserError(
                    f"config.hierarchy.{name} is set, but there is no hierarchy: give "
                    "--config.hierarchy.depth=L"
                )


def _check_compute(c: ConfigDict) -> None:
    plain = base.get_config().model
    for name in ("remat", "dtype", "fused_attention"):
        if c.network != "unet" and c[name] != plain[name]:
            raise UserError(
                f"config.model.{name} is {c[name]!r}, which is for the network unet only; leave it "
                f"out with {c.network}"
            )
    if c.fused_attention and c.dtype != "bfloat16":
        raise UserError(
            "config.model.fused_attention is cuDNN's, for --config.model.dtype=bfloat16; this is "
            f"{c.dtype}"
        )


def _check_variance(c: ConfigDict) -> None:
    """Only a pinned monotone schedule in continuous time has a shape that the bound leaves free."""
    for name, wanted in (("gamma", "monotone"), ("gamma_pinned", True), ("num_steps", None)):
        if c[name] != wanted:
            raise UserError(
                f"config.model.gamma_objective is 'variance', which needs config.model.{name} to "
                f"be {wanted}, got {c[name]}: else the bound depends on the schedule's shape"
            )


def _check_binomial(config: ConfigDict, levels: int) -> None:
    c = config.model
    if levels != 2:
        raise UserError(
            f"config.model.process is 'binomial', for images of 2 levels; these have {levels} "
            "(--config.data.name=digits_binary has 2)"
        )
    if c.num_steps is None:
        raise UserError("config.model.process is 'binomial', which needs config.model.num_steps")
    for name, wanted in (
        ("decoder", "discretised"),
        ("reverse_var", "posterior"),
        ("gamma", "fixed"),
        ("fourier_features", False),
    ):
        if c[name] != wanted:
            raise UserError(
                f"config.model.process is 'binomial', which knows no config.model.{name} but "
                f"{wanted}, got {c[name]}"
            )
    if config.hierarchy.depth is not None:
        raise UserError("config.model.process is 'binomial', which goes with no hierarchy")


def _check_hierarchy(config: ConfigDict, num_classes: int) -> None:
    c, h = config.model, config.hierarchy
    vdm = h.data_size and h.fixed_encoder
    least = 2 if vdm else 1
    if h.depth < least or h.latent_size < 1:
        raise UserError(
            f"config.hierarchy: depth must be at least {least} and latent_size at least 1, got "
            f"{h.depth} and {h.latent_size}"
        )
    if c.num_steps is not None:
        raise UserError(
            f"config.model.num_steps is {c.num_steps}, but a hierarchy has as many steps as its "
            "depth says; leave it out"
        )
    if c.gamma_objective != "bound":
        raise UserError(
            f"config.model.gamma_objective is {c.gamma_objective!r}, which is for a VDM's own "
            "bound: that of a hierarchy has no time whose loss could vary less"
        )
    if c.timesteps != "antithetic":
        raise UserError(
            f"config.model.timesteps is {c.timesteps!r}, but a hierarchy draws no times: leave it "
            "out"
        )
    if h.ends_at_normal and c.gamma_max < 3:
        raise UserError(
            f"config.hierarchy.ends_at_normal is set, but config.model.gamma_max is {c.gamma_max}, "
            "where the latent is not N(0, I) yet; give 3 or more (5 is the paper's)"
        )
    plain = base.get_config().model
    for name, used in (("gamma_max", h.ends_at_normal), ("attention", c.network == "unet")):
        if not used and c[name] != plain[name]:
            raise UserError(
                f"config.model.{name} is {c[name]}, which nothing reads here; leave it out"
            )
    if vdm and not h.ends_at_normal and c.gamma != "fixed":
        raise UserError(
            f"config.model.gamma is {c.gamma!r}, whose end would be learned, but without "
            "config.hierarchy.ends_at_normal it is to be 0: give fixed"
        )
    if h.data_size and h.latent_size != base.get_config().hierarchy.latent_size:
        raise UserError(
            f"config.hierarchy.latent_size is {h.latent_size}, but with data_size latents are as "
            "large as an image; leave it out"
        )
    if vdm:
        return
    elements = "it has networks of its own, of config.model.channels and num_blocks"
    for name, wanted in (
        ("network", "mlp"), ("head", "eps"), ("gamma", "fixed"), ("fourier_features", False),
        ("reverse_var", "posterior"),
    ):  # fmt: skip
        if c[name] != wanted:
            raise UserError(
                f"config.model.{name} is {c[name]!r}; a hierarchical VAE wants {wanted!r} there: "
                f"{elements}"
            )
    if num_classes:
        raise UserError("config.data.class_labels: a hierarchical VAE is not conditioned on them")


def training(config: ConfigDict, mesh: Mesh) -> None:
    """Raise UserError for batches that can't be split over the devices, or the wrong devices."""
    platform = mesh.devices.flat[0].platform
    if config.model.fused_attention and platform != "gpu":
        raise UserError(
            f"config.model.fused_attention is cuDNN's, for a GPU; this is a {platform}: leave it "
            "out"
        )
    for name, size, accumulate in (
        ("train", config.train.batch_size, config.train.accumulate),
        ("eval", config.eval.batch_size, 1),
    ):
        try:
            sharding.check_batch_size(size, mesh, accumulate)
        except ValueError as error:
            raise UserError(f"config.{name}.batch_size: {error}") from error


def _compare(given: ConfigDict, wanted: ConfigDict, prefix: str) -> None:
    """Names and types of a configuration file against those of `configs/base.py`."""
    for name in sorted({*given.keys(), *wanted.keys()}, key=str):
        if name not in wanted:
            raise UserError(f"{prefix}{name} is no setting; see experiments/configs/base.py")
        if name not in given:
            raise UserError(f"{prefix}{name} is missing; start from base.get_config()")
        value, kind = given[name], wanted.get_type(name)
        if kind is ConfigDict and isinstance(value, ConfigDict):
            _compare(value, wanted[name], f"{prefix}{name}.")
        elif type(value) is not kind and not (value is None and wanted[name] is None):
            what = "a group of settings" if kind is ConfigDict else kind.__name__
            got = " ".join(repr(value).split())
            raise UserError(f"{prefix}{name} must be {what}, got {got[:200]}")
        elif kind is str and any(ord(letter) < 32 for letter in value or ""):
            raise UserError(f"{prefix}{name} must be text on one line, got {value[:200]!r}")
