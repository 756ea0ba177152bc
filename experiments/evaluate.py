"""Evaluate a run, or a published checkpoint: bits per dim, each with its error bar and its kind.

    python -m experiments.evaluate --workdir=DIR [--checkpoint=STEP] [--num_steps=10,100,1000,inf]
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

from vdm_jax import ode, pixels
from vdm_jax.evaluation import report as results
from vdm_jax.evaluation.likelihood import Chains, Ode, Settings, measure
from vdm_jax.evaluation.subject import Subject
from vdm_jax.run import build as setup
from vdm_jax.run import cli
from vdm_jax.run import distributed as cluster
from vdm_jax.run import restore as trained
from vdm_jax.run.cli import UserError
from vdm_jax.run.restore import Restored
from vdm_jax.train import memory
from vdm_jax.vdm import VDM

EXACT_UP_TO = 64  # elements of an image, for --trace=auto
VDM_ONLY = (
    "num_steps", "importance", "control_variates", "chains", "chain_steps", "chain_images",
    "ode_images", "dequantization", "ode_samples", "trace", "probes", "num_probes", "tolerance",
)  # fmt: skip


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    text, number, choice = cli.definers(values)
    trained.define_flags(values, "results", "evaluate on")
    number("repeats", "draws of time and noise per image; default that of the configuration")
    text("num_steps", "T, or several: 10,100,1000,inf; inf is continuous time; default the model's")
    number("batch_size", "images at once, over all devices; default that of the configuration")
    number("shard_params", "devices over which the parameters are split; 1: a copy on each", 1)
    number("images", "take the first N test images only")
    number("seed", "settles all draws", 0, 0, 2**32 - 1)
    flags.DEFINE_float(
        "monte_carlo_error", None, "instead of --repeats: as many draws of each image as bring the "
        "error of the draws below it, in the bound's unit; a few others tell how many",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_bool(
        "importance", False, "draw times by importance, more where the noise matters more, as "
        "measured on training images", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_bool(
        "control_variates", False, "subtract what the noise does to a linear denoiser, of known "
        "mean, fitted to training images: the same bound with a smaller error", flag_values=values,
    )  # fmt: skip
    number("chains", "K of the importance-weighted bound; 0: without it", 0, 0)
    number("chain_steps", "its T", 100)
    number("chain_images", "how many images it is computed for", 64)
    number("ode_images", "how many images the ODE is solved for; 0: none", 0, 0)
    choice("dequantization", "of the ODE", (*pixels.DEQUANTIZATIONS, "both"), "truncated_normal")
    number("ode_samples", "draws of the dequantisation that one bound is made of", 1)
    choice("trace", "of the ODE", (*ode.TRACES, "auto"), "auto")
    choice("probes", "of --trace=hutchinson", ode.PROBES, "rademacher")
    number("num_probes", "of --trace=hutchinson", 1)
    flags.DEFINE_float("tolerance", 1e-5, "of the ODE, relative and absolute", flag_values=values)
    return values


def evaluate(argv: list[str]) -> dict[str, Any]:
    """Evaluates as `argv` asks for; writes, prints and returns what result.json holds."""
    values = _flags()
    cli.parse_flags(values, argv, __doc__)
    cluster.start(values)
    options: dict[str, Any] = {name: values[name].value for name in values if name != "help"}
    if not options["workdir"]:
        raise UserError("--workdir=DIR is missing: the folder of the run, or for the results")
    _check_numbers(options)
    mesh = setup.make_mesh(options["shard_params"], "shard_params")
    workdir = Path(options["workdir"])
    model = trained.from_options(workdir, options, mesh)
    parent = setup.make_workdir(workdir / "evaluation")
    subject = model.on(mesh, options["batch_size"])
    with memory.exhausted(setup.lower_batch(subject.batch_size)):
        asked = _settings(options, model)
        setup.check_batch_size(subject.batch_size, mesh)
        found = everything(model, subject.first(options["images"]), asked)
    found["command"] = shlex.join(["python", "-m", "experiments.evaluate", *argv[1:]])
    if jax.process_index() == 0:
        with cli.writing(parent):
            results.write(results.new_folder(parent, model.step), found)
    if found["failed"]:
        raise UserError(found["failed"])
    return found


def everything(trained: Restored, subject: Subject, asked: Settings) -> dict[str, Any]:
    """Returns all that is asked for of a restored model, as one JSON object; prints each row."""
    images = subject.images
    given_class = images.num_classes > 0
    print(
        f"{trained.name}, step {trained.step}: {len(images.test)} {trained.part} images of "
        f"{images.name}" + (", given their class" if given_class else ""),
        flush=True,
    )
    return {
        "model": {"name": trained.name, "step": trained.step},
        "data": setup.describe(images) | {"part": trained.part, "given_class": given_class},
        **measure(subject, asked, lambda row: print(results.line(row), flush=True)),
    }


def _settings(options: Mapping[str, Any], model: Restored) -> Settings:
    """Returns what the flags ask for. Raises UserError for what the model has not."""
    bound, plain = model.bound, _flags()
    is_vdm = isinstance(bound, VDM)
    for name in VDM_ONLY:  # another model has one bound and no other likelihood
        if not is_vdm and options[name] != plain[name].default:
            raise UserError(f"--{name} is for a VDM; this run is another model: {bound.words}")
    if bound.levels is None and (options["chains"] or options["ode_images"]):
        raise UserError(
            "--chains and --ode_images are of discrete images, in bits; this run's decoder is a "
            "Gaussian density (config.model.decoder), in nats: the two can't be compared"
        )
    chains = Chains(*(options[name] for name in ("chains", "chain_steps", "chain_images")))
    same = {name: options[name] for name in Settings._fields if name in options}
    return Settings(**same)._replace(
        repeats=options["repeats"] or model.repeats,
        num_steps=steps_of(options["num_steps"], model.vdm) if is_vdm else (None,),
        chains=chains if options["chains"] else None,
        ode=_ode(options, bound.event_shape) if options["ode_images"] else None,
    )


def _ode(options: Mapping[str, Any], event_shape: tuple[int, ...]) -> Ode:
    trace, tolerance, asked = options["trace"], options["tolerance"], options["dequantization"]
    if trace == "auto":
        trace = "exact" if math.prod(event_shape) <= EXACT_UP_TO else "hutchinson"
    if trace == "hutchinson" and options["ode_samples"] > 1:
        raise UserError(
            "--ode_samples above 1 needs --trace=exact: the noise of a stochastic trace would bias "
            "the mean of exp(log p)"
        )
    solver = ode.Solver(trace, options["probes"], options["num_probes"], tolerance, tolerance)
    methods = pixels.DEQUANTIZATIONS if asked == "both" else (asked,)
    return Ode(options["ode_images"], methods, options["ode_samples"], solver)


def steps_of(text: str | None, model: VDM) -> tuple[int | None, ...]:
    """ "10,1000,inf" -> (10, 1000, None). Raises UserError for what is no number of steps."""
    if text is None:
        return (model.num_steps,)
    found: list[int | None] = []
    for word in (word.strip() for word in text.split(",")):
        if word in ("inf", "None"):
            found.append(None)
            continue
        if not (word.isascii() and word.isdigit()) or not 1 <= int(word) <= cli.MOST:
            raise UserError(
                f"--num_steps={text}: {word!r} is no number of steps; wanted whole numbers from 1 "
                f"to {cli.MOST}, or inf for continuous time, as in 10,100,1000,inf"
            )
        found.append(int(word))
    return tuple(dict.fromkeys(found))


def _check_numbers(options: Mapping[str, Any]) -> None:
    """Raises UserError for a tolerance or an error that can't be."""
    error, tolerance = options["monte_carlo_error"], options["tolerance"]
    finest = 4.0 * float(jnp.finfo(jnp.zeros(()).dtype).eps)
    if not finest <= tolerance <= 0.1:
        raise UserError(f"--tolerance must be from {finest:.1e} to 0.1, got {tolerance}")
    if error is not None and options["repeats"] is not None:
        raise UserError("--monte_carlo_error and --repeats exclude each other: the one sets both")
    if error is not None and not 0.0 < error < math.inf:
        raise UserError(f"--monte_carlo_error must be positive and finite, got {error:g}")


if __name__ == "__main__":
    cli.guard(lambda: evaluate(sys.argv))
