"""Refuses a configuration that can't be run, by the name of the setting."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax import timestep, weighting
from vdm_jax.data import Condition, ImageData, sources
from vdm_jax.errors import UserError
from vdm_jax.nn.blocks import REMATS
from vdm_jax.nn.features import HEADS
from vdm_jax.parameterization import REVERSE_VARS
from vdm_jax.run import build, defaults
from vdm_jax.run.cli import MOST

POSITIVE = {
    *(f"{part}.{name}" for part in ("train", "eval", "sample") for name in defaults.DEFAULTS[part]),
    "optimizer.learning_rate", "optimizer.eps", "optimizer.clip_norm", "data.levels",
    "model.channels", "model.num_blocks", "model.num_steps", "hierarchy.latent_size",
}  # fmt: skip
OR_NONE = ("optimizer.clip_norm", "model.num_steps")
NOT_NEGATIVE = ("optimizer.warmup_steps", "optimizer.weight_decay", "data.validation")
BELOW_ONE = ("optimizer.b1", "optimizer.b2", "optimizer.ema_rate", "model.dropout",
             "model.condition_dropout")  # fmt: skip
# What would only run out of memory, or of patience; what isn't here is a 32-bit integer.
LARGEST = {
    "train.batch_size": 10**6, "train.steps_per_call": 10**5, "eval.batch_size": 10**6,
    "eval.repeats": MOST, "eval.final_repeats": MOST, "sample.count": 10**5,
    "sample.num_steps": MOST, "model.channels": 2**16, "model.num_blocks": 1000,
    "model.num_steps": timestep.most_steps("float32"), "hierarchy.depth": 1000,
    "hierarchy.latent_size": 2**20,
}  # fmt: skip
GAMMA = 40.0  # gamma's end points lie in +-GAMMA: there exp of their difference is a float32
WORDS = {
    "network": ("unet", "pyramid", "resnet", "mlp"),
    "head": HEADS,
    "attention": ("middle", "all"),
    "remat": ("auto", *REMATS),
    "dtype": ("float32", "bfloat16"),
    "gamma_objective": ("bound", "variance"),
    "timesteps": (*timestep.METHODS, "adaptive"),
    "weighting": tuple(weighting.NAMED),
    "reverse_var": REVERSE_VARS,
    "decoder": ("discretised", "density"),
    "process": ("gaussian", "binomial"),
}
_OF_NETWORKS = {
    ("remat", "dtype", "fused_attention"): ("unet", "pyramid"),
    ("multipliers", "blocks", "contrasts"): ("pyramid",),
}
_PLAIN = defaults.DEFAULTS["model"]
# What models have that lack these choices.
_SIMPLEST = {"gamma": "fixed", "reverse_var": "posterior", "fourier_features": False}


def check_config(config: ConfigDict) -> None:
    """Raises UserError for a missing or unknown name, a wrong type, or a number out of range."""
    _compare(config, defaults.get_config(), "config.")
    for part in config:
        for name in config[part] if isinstance(config[part], ConfigDict) else ():
            _check_number(f"{part}.{name}", config[part][name])
    # A run without decay has 0 in its config.json.
    steps = config.optimizer.decay_steps
    if steps is not None and steps <= 0 and (config.optimizer.decay, steps) != ("none", 0):
        raise UserError(f"config.optimizer.decay_steps must be above 0, or None, got {steps}")
    low, high = config.model.gamma_min, config.model.gamma_max
    if not -GAMMA <= low < high <= GAMMA:
        said = f"must be below gamma_max, both in [{-GAMMA:g}, {GAMMA:g}], got {low} and {high}"
        raise UserError(f"config.model.gamma_min {said}")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"config.seed must lie in [0, 2^32), got {config.seed}")


def _check_number(name: str, value: Any) -> None:
    single = value
    if isinstance(value, float):  # as training has it: there 1 - 1e-9 is 1, and 1e-50 is 0
        with np.errstate(over="ignore"):
            single = float(np.float32(value))
    wanted = None
    if name in POSITIVE and not (value is None and name in OR_NONE):
        if not (single > 0 and math.isfinite(single)):
            wanted = f"be finite and above 0{', or None' if name in OR_NONE else ''}"
    elif name in NOT_NEGATIVE and not (single >= 0 and math.isfinite(single)):
        wanted = "not be negative"
    elif name in BELOW_ONE and not 0 <= single < 1:
        wanted = "lie in [0, 1)"
    most = LARGEST.get(name, 2**31 - 1)
    if not wanted and isinstance(value, int) and value > most:
        wanted = f"be at most {most}"
    if wanted:
        raise UserError(f"config.{name} must {wanted}, got {value}")


def _compare(given: ConfigDict, wanted: ConfigDict, prefix: str) -> None:
    """Compares the names and types of a configuration file with those of the defaults."""
    for name in sorted({*given.keys(), *wanted.keys()}, key=str):
        if name not in wanted:
            raise UserError(f"{prefix}{name} is no setting; see vdm_jax/run/defaults.py")
        if name not in given:
            raise UserError(f"{prefix}{name} is missing; start from defaults.get_config()")
        value, kind = given[name], wanted.get_type(name)
        if kind is ConfigDict and isinstance(value, ConfigDict):
            _compare(value, wanted[name], f"{prefix}{name}.")
        elif type(value) is not kind and not (value is None and wanted[name] is None):
            what = "a group of settings" if kind is ConfigDict else kind.__name__
            got = " ".join(repr(value).split())
            raise UserError(f"{prefix}{name} must be {what}, got {got[:200]}")
        elif kind is str and any(ord(letter) < 32 for letter in value or ""):
            raise UserError(f"{prefix}{name} must be text on one line, got {value[:200]!r}")


def check_devices(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UserError for batches that can't be split over the devices, or the wrong devices."""
    platform = mesh.devices.flat[0].platform
    if config.model.fused_attention and platform != "gpu":
        said = "config.model.fused_attention is cuDNN's, for a GPU; this is a"
        raise UserError(f"{said} {platform}: leave it out")
    for part, accumulate in (("train", config.train.accumulate), ("eval", 1)):
        name = f"config.{part}.batch_size"
        build.check_batch_size(config[part].batch_size, mesh, accumulate, name)


def check_model(config: ConfigDict, levels: int, condition: Condition) -> None:
    """Raises UserError for an unknown word, or settings of the model that don't go together."""
    c, h = config.model, config.hierarchy
    told = _condition(c, condition), _hierarchy(c, h, condition), _transform(c, h)
    rules = _words(c), _time(c, h), _binomial(c, h, levels), *told
    for said in itertools.chain(*rules):
        raise UserError(f"config.{said}")


def check_training(config: ConfigDict, images: ImageData) -> None:
    """Raises UserError for what nobody wants to train, though an older run may have been."""
    c, h, augment = config.model, config.hierarchy, config.data.augment
    if c.gamma == "scalar" and not c.learn_end_points:
        said = "config.model.learn_end_points is False, but config.model.gamma=scalar is two end"
        raise UserError(f"{said} points that are learned: give fixed")
    unread = {"gamma_pinned": c.gamma != "monotone", "attention": c.network in ("resnet", "mlp")}
    for name in (name for name, of in unread.items() if of and c[name] != _PLAIN[name]):
        raise UserError(f"config.model.{name} is {c[name]}, which nothing reads here: leave it out")
    if config.optimizer.decay == "none" and config.optimizer.decay_steps:
        said = f"config.optimizer.decay_steps is {config.optimizer.decay_steps}, but there is no"
        raise UserError(f"{said} decay: give config.optimizer.decay=linear or cosine")
    if config.data.manual_dir and config.data.name in sources.OWN:
        said = f"config.data.manual_dir={config.data.manual_dir!r} is for published archives, not"
        raise UserError(f"{said} for {config.data.name}: leave it out")
    if c.network == "resnet" and c.dropout >= 0.5:
        said = f"config.model.dropout is {c.dropout}, and the resnet drops twice as much of what"
        raise UserError(f"{said} it knows of all pixels: give less than 0.5")
    if augment != "none" and h.depth is not None and not (h.data_size and h.fixed_encoder):
        said = f"config.data.augment is {augment!r}, but a hierarchical VAE isn't told which images"
        raise UserError(f"{said} are augmented, and would learn the mixture: leave it out")
    if (unseen := images.unseen_class) is not None:  # no dataset has one before it is split
        said = f"config.data.validation={config.data.validation} holds out all images of class"
        raise UserError(f"{said} {unseen!r}: give fewer")


def _condition(c: ConfigDict, condition: Condition) -> Iterator[str]:
    needing = {"condition_dropout": c.condition_dropout, "gamma": c.gamma == "conditional_path"}
    for name, needed in needing.items():
        if needed and not condition.size:
            said = f"model.{name} is {c[name]}, but the data have no condition: leave it out, or"
            yield f"{said} give config.data.class_labels, or arrays with one"


def _needed(c: ConfigDict, said: str, wanted: Mapping[str, Any], why: str = "") -> Iterator[str]:
    for name, value in wanted.items():
        if c[name] != value:
            yield f"{said} needs config.model.{name} to be {value}, got {c[name]}{why}"


def _words(c: ConfigDict) -> Iterator[str]:
    for name, known in WORDS.items():
        if c[name] not in known:
            yield f"model.{name} is {c[name]!r}; known: {', '.join(known)}"
    for names, networks in _OF_NETWORKS.items():
        for name in names if c.network not in networks else ():
            # "matmuls" is what older runs of any network have of remat.
            if c[name] not in (_PLAIN[name], "matmuls"):
                for_these = " and ".join(networks)
                yield f"model.{name} is {c[name]!r}, for {for_these} only; leave it out"
    if c.network == "pyramid" and c.contrasts and c.head != "eps":
        yield (f"model.head is {c.head!r}, but the pyramid's filters give eps: give "
               "--config.model.head=eps, or no filters, --config.model.contrasts=")  # fmt: skip
    if c.fused_attention and c.dtype != "bfloat16":
        yield f"model.fused_attention is cuDNN's, for model.dtype bfloat16; this is {c.dtype}"


def _transform(c: ConfigDict, h: ConfigDict) -> Iterator[str]:
    if c.transform not in ("none", "dct", *(f"haar-{levels}" for levels in range(1, 10))):
        yield f"model.transform is {c.transform!r}; known: none, dct, haar-1, haar-2, ..."
    for name, given in (("transform", c.transform != "none"), ("gamma", "path" in c.gamma)):
        if given and (c.process != "gaussian" or h.depth is not None):
            yield f"model.{name} is {c[name]!r}, for the VDM only; leave it out"
    if c.transform != "none" and c.head == "levels":
        yield (f"model.head is levels, which needs the noise of pixels, and model.transform "
               f"{c.transform}: give --config.model.head=eps, x, v or score")  # fmt: skip
    if c.transform != "none" and c.reverse_var == "learned":
        yield (f"model.reverse_var is learned, of pixels, and model.transform {c.transform}: "
               "give --config.model.reverse_var=posterior or transition")  # fmt: skip


def _time(c: ConfigDict, h: ConfigDict) -> Iterator[str]:
    pinned = c.gamma.endswith("path") or (c.gamma == "monotone" and c.gamma_pinned)
    held = pinned and not c.learn_end_points
    if c.decoder == "density" and not (held or c.gamma == "fixed"):
        yield ("model.decoder is 'density', for which there is no best gamma_0: hold the end "
               "points by gamma=fixed, or by learn_end_points=False and gamma=monotone, pinned, "
               "or gamma=path")  # fmt: skip
    if c.gamma_objective == "variance":
        # Only a pinned monotone schedule in continuous time has a shape that the bound leaves free.
        free = {"gamma": "monotone", "gamma_pinned": True, "num_steps": None}
        why = ": else the bound depends on gamma's shape"
        yield from _needed(c, "model.gamma_objective is 'variance', which", free, why)
    if c.timesteps == "adaptive":
        wanted: dict[str, Any] = {"process": "gaussian", "gamma_objective": "bound"}
        yield from _needed(c, "model.timesteps is 'adaptive', which", wanted)
    if c.weighting != "bound":
        # An end point that is learned would go where the weighted loss is low, not the bound.
        wanted = {"process": "gaussian", "gamma": "fixed", "num_steps": None}
        yield from _needed(c, f"model.weighting is {c.weighting!r}, which", wanted)
    if c.reverse_var != "posterior" and c.num_steps is None and h.depth is None:
        yield (f"model.reverse_var is {c.reverse_var!r}, which in continuous time makes no "
               "difference: give a number of steps, --config.model.num_steps=T")  # fmt: skip


def _binomial(c: ConfigDict, h: ConfigDict, levels: int) -> Iterator[str]:
    binomial = c.process == "binomial"
    if binomial != (c.head == "logits"):
        yield (f"model.head is {c.head!r} and process {c.process!r}: the head logits and the "
               "process binomial go together, and neither with another")  # fmt: skip
    if not binomial:
        return
    said = "model.process is 'binomial', which"
    if levels != 2:
        yield (f"{said} is for images of 2 levels; these have {levels} "
               "(--config.data.name=digits_binary has 2)")  # fmt: skip
    if c.num_steps is None:
        yield f"{said} needs config.model.num_steps"
    yield from _needed(c, said, {"decoder": "discretised", **_SIMPLEST})
    if h.depth is not None:
        yield f"{said} goes with no hierarchy"


def _hierarchy(c: ConfigDict, h: ConfigDict, condition: Condition) -> Iterator[str]:
    plain = defaults.DEFAULTS["hierarchy"]
    if h.depth is None:
        for name in ("latent_size", "data_size", "fixed_encoder", "ends_at_normal"):
            if h[name] != plain[name]:
                yield f"hierarchy.{name} is set, but there is no hierarchy: give hierarchy.depth=L"
        return
    of_vdm = h.data_size and h.fixed_encoder  # with a VDM's networks
    if h.depth < 1 + of_vdm:
        yield f"hierarchy.depth must be at least {1 + of_vdm}, got {h.depth}"
    if c.num_steps is not None:
        yield f"model.num_steps is {c.num_steps}, but a hierarchy has its depth; leave it out"
    if c.gamma_objective != "bound":
        yield f"model.gamma_objective is {c.gamma_objective!r}: a hierarchy's bound has no times"
    for name in ("timesteps", "weighting"):
        if c[name] != _PLAIN[name]:
            yield f"model.{name} is {c[name]!r}, but a hierarchy draws no times: leave it out"
    if h.ends_at_normal and c.gamma_max < 3:
        yield (f"hierarchy.ends_at_normal is set, but config.model.gamma_max is {c.gamma_max}, "
               "where the latent is not N(0, I) yet; give 3 or more, as 5")  # fmt: skip
    attends = c.network in ("unet", "pyramid")
    for name, used in (("gamma_max", h.ends_at_normal), ("attention", attends)):
        if not used and c[name] != _PLAIN[name]:
            yield f"model.{name} is {c[name]}, which nothing reads here; leave it out"
    if h.data_size and h.latent_size != plain["latent_size"]:
        yield f"hierarchy.latent_size is {h.latent_size}, but data_size is set; leave one out"
    if not of_vdm:
        why = ": its own networks are of model.channels and num_blocks"
        wanted = {"network": "mlp", "head": "eps", **_SIMPLEST}
        yield from _needed(c, "hierarchy makes a hierarchical VAE, which", wanted, why)
        if condition.size:
            yield "data: a hierarchical VAE is not conditioned on classes or numbers"
    elif not h.ends_at_normal and c.gamma != "fixed":
        yield (f"model.gamma is {c.gamma!r}, whose end would be learned, but without "
               "config.hierarchy.ends_at_normal it is to be 0: give fixed")  # fmt: skip
