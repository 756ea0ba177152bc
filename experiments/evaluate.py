"""Evaluate a run, a model in one file or a published checkpoint: bits per dim with error bars.

    python -m experiments.evaluate --workdir=DIR [--checkpoint=STEP] [--num_steps=10,100,1000,inf]
    python -m experiments.evaluate --pretrained=digits --out=DIR
    python -m experiments.evaluate --workdir=DIR --official=PATH --model=cifar10

One exact pass over the test images; --num_steps prints the bound for each number of steps T, from
one model and the same draws (with --monte_carlo_error, as many of them as each needs).
--importance and --control_variates make the error of as many draws smaller. With --ode_images=N
the probability-flow ODE's likelihood stands beside it, with --chains=K the importance-weighted
bound. Leaves result.json, result.md and a plot of what each noise level costs in a new folder
below DIR/evaluation.
"""

import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from vdm_jax import mixed, pixels, timestep
from vdm_jax.errors import UserError
from vdm_jax.evaluation import report
from vdm_jax.evaluation.likelihood import Settings, measure
from vdm_jax.evaluation.subject import Subject
from vdm_jax.ode import PROBES, TRACES, Solver, finest
from vdm_jax.run import build, cli, distributed, restore
from vdm_jax.train import memory
from vdm_jax.vdm import VDM

MOST_STEPS = timestep.most_steps("float32")
EXACT_UP_TO = 64  # elements of an image, for --trace=auto
OF = {  # the flags that go with another
    "chains": ("chain_steps", "chain_images"),
    "ode_images":
        ("dequantization", "ode_samples", "trace", "probes", "num_probes", "tolerance"),
}  # fmt: skip
VDM_ONLY = "num_steps", "importance", "control_variates", *OF, *OF["chains"], *OF["ode_images"]


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    text, number, choice = cli.definers(values)
    restore.define_flags(values, "results", "evaluate on")
    number("repeats", "draws of time and noise per image; default that of the configuration")
    text("num_steps", "T, or several: 10,100,1000,inf; inf is continuous time; default the model's")
    number("batch_size", "images at once, over all devices; default that of the configuration")
    number("shard_params", "devices over which the parameters are split; 1: a copy on each", 1)
    number("images", "take the first N test images only")
    number("seed", "settles all draws", 0, 0, 2**32 - 1)
    about = "in place of --repeats: as many draws as bring their error below it, in its unit"
    flags.DEFINE_float("monte_carlo_error", None, about, flag_values=values)
    for name, about in (
        ("importance", "draw times by importance, as measured on training images"),
        ("control_variates", "subtract what the noise does to a linear denoiser, of known mean"),
    ):
        flags.DEFINE_bool(name, False, about + ": a smaller error", flag_values=values)
    number("chains", "K of the importance-weighted bound; 0: without it", 0, 0)
    number("chain_steps", "its T", 100, 1, MOST_STEPS)
    number("chain_images", "how many images it is computed for", 64)
    number("ode_images", "how many images the ODE is solved for; 0: none", 0, 0)
    choice("dequantization", "of the ODE", (*pixels.DEQUANTIZATIONS, "both"), "truncated_normal")
    number("ode_samples", "draws of the dequantisation that one bound is made of", 1)
    choice("trace", "of the ODE", (*TRACES, "auto"), "auto")
    choice("probes", "of --trace=hutchinson", PROBES, "rademacher")
    number("num_probes", "of --trace=hutchinson", 1)
    flags.DEFINE_float("tolerance", 1e-5, "of the ODE, relative and absolute", flag_values=values)
    return values


def evaluate(argv: list[str]) -> dict[str, Any]:
    """Evaluates as `argv` asks for; writes, prints and returns what result.json holds."""
    values = _flags()
    options, _ = cli.parse_flags(values, argv, __doc__)
    distributed.start(values)
    _check_numbers(options)
    mesh = build.make_mesh(options["shard_params"], "shard_params")
    subject = restore.from_options(options, mesh)
    parent = build.make_workdir(Path(options["out"] or f"{options['workdir']}/evaluation"), "out")
    with memory.exhausted(memory.lower_batch(subject.batch_size)):
        asked = _settings(options, subject)
        build.check_batch_size(subject.batch_size, mesh)
        subject = subject.first(options["images"])
        images = subject.images
        words = f"{len(images.test)} {subject.part} images of {images.name}"
        if given := images.condition.word:
            words += f", given their {given}"
        print(f"{subject.name}, step {subject.step}: {words}", flush=True)
        found = {
            "model": {"name": subject.name, "step": subject.step},
            "data": build.describe(images) | {"part": subject.part, "given": given},
            **measure(subject, asked, lambda row: print(report.line(row), flush=True)),
        }
    found["command"] = shlex.join(["python", "-m", "experiments.evaluate", *argv[1:]])
    if jax.process_index() == 0:
        report.write(report.new_folder(parent, subject.step), found)
    if found["failed"]:
        raise UserError(found["failed"])
    return found


def _settings(options: Mapping[str, Any], model: Subject) -> Settings:
    """Returns what the flags ask for. Raises UserError for what the model has not."""
    bound, plain = model.bound, _flags()
    is_vdm = isinstance(bound, VDM)
    for name in VDM_ONLY:  # another model has one bound and no other likelihood
        if not is_vdm and options[name] != plain[name].default:
            raise UserError(f"--{name} is for a VDM; this run is another model: {bound.words}")
    for needed, names in OF.items():
        odd = [name for name in names if options[name] != plain[name].default]
        if odd and not options[needed]:
            raise UserError(f"--{odd[0]} goes with --{needed}, which isn't given")
    if None in mixed.kinds(bound.levels) and (options["chains"] or options["ode_images"]):
        said = "--chains and --ode_images are of discrete images, in bits; this run's decoder is a"
        raise UserError(f"{said} density (config.model.decoder), in nats: they can't be compared")
    trace, tolerance, asked = options["trace"], options["tolerance"], options["dequantization"]
    if trace == "auto":
        small = math.prod(bound.event_shape) <= EXACT_UP_TO
        trace = "exact" if small else "hutchinson"
    odd = [name for name in ("probes", "num_probes") if options[name] != plain[name].default]
    if odd and trace == "exact":
        raise UserError(f"--{odd[0]} goes with --trace=hutchinson; here the trace is exact")
    if options["ode_images"] and trace == "hutchinson" and options["ode_samples"] > 1:
        raise UserError("--ode_samples above 1 needs --trace=exact: noise in log p would bias it")
    given = Settings(**{name: options[name] for name in Settings._fields if name in options})
    return given._replace(
        repeats=options["repeats"] or model.repeats,
        num_steps=steps_of(options["num_steps"], model.vdm) if is_vdm else (None,),
        dequantizations=pixels.DEQUANTIZATIONS if asked == "both" else (asked,),
        solver=Solver(trace, options["probes"], options["num_probes"], tolerance, tolerance),
    )


def steps_of(text: str | None, model: VDM) -> tuple[int | None, ...]:
    """Returns (10, 1000, None) for "10,1000,inf". Raises UserError for what is no number."""
    if text is None:
        return (model.num_steps,)
    found: list[int | None] = []
    for word in map(str.strip, text.split(",")):
        number = int(word) if word.isascii() and word.isdigit() else 0
        if word not in ("inf", "None") and not 1 <= number <= MOST_STEPS:
            raise UserError(f"--num_steps={text}: wanted numbers from 1 to {MOST_STEPS}, or inf")
        found.append(number or None)
    return tuple(dict.fromkeys(found))


def _check_numbers(options: Mapping[str, Any]) -> None:
    error, tolerance = options["monte_carlo_error"], options["tolerance"]
    least = finest(jnp.zeros(()).dtype)
    if not least <= tolerance <= 0.1:
        raise UserError(f"--tolerance must be from {least:.1e} to 0.1, got {tolerance}")
    if error is None:
        return
    if options["repeats"] is not None:
        raise UserError("--monte_carlo_error and --repeats exclude each other: the one sets both")
    if not 0.0 < error < math.inf:
        raise UserError(f"--monte_carlo_error must be positive and finite, got {error:g}")


if __name__ == "__main__":
    cli.guard(lambda: evaluate(sys.argv))
