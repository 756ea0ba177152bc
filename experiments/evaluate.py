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
import numpy as np
from absl import flags
from jax.sharding import Mesh

from vdm_jax import ode, pixels
from vdm_jax.data import DataError
from vdm_jax.evaluation import likelihood as measure
from vdm_jax.evaluation import report as results
from vdm_jax.evaluation import variance_reduction as pilot
from vdm_jax.evaluation.bound import Estimate
from vdm_jax.run import build as setup
from vdm_jax.run import cli
from vdm_jax.run import distributed as cluster
from vdm_jax.run import restore as trained
from vdm_jax.run.cli import UserError
from vdm_jax.run.restore import Restored
from vdm_jax.train import memory
from vdm_jax.train.checkpoint import CheckpointError
from vdm_jax.train.model import Bound, Model
from vdm_jax.vdm import VDM

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
    """Parse `argv`, evaluate, write and print the results; they are returned as in result.json."""
    values = _flags()
    cli.parse_flags(values, argv, __doc__)
    cluster.start(values)
    options: dict[str, Any] = {name: values[name].value for name in values if name != "help"}
    if not options["workdir"]:
        raise UserError("--workdir=DIR is missing: the folder of the run, or for the results")
    _check_tolerance(options["tolerance"])
    _check_error(options["monte_carlo_error"], options["repeats"])
    mesh = setup.make_mesh(options["shard_params"], "shard_params")
    workdir = Path(options["workdir"])
    try:
        model = trained.from_options(workdir, options, mesh)
        parent = setup.make_workdir(workdir / "evaluation")
        with memory.exhausted(setup.lower_batch(options["batch_size"] or model.batch_size)):
            found = everything(model, options, mesh)
    except (DataError, CheckpointError) as error:
        raise UserError(str(error)) from error
    found["command"] = shlex.join(["python", "-m", "experiments.evaluate", *argv[1:]])
    if jax.process_index() == 0:
        with cli.writing(parent):
            results.write(results.new_folder(parent, model.step), found)
    if found["failed"]:
        raise UserError(found["failed"])
    return found


def everything(trained: Restored, options: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """All that the options ask for, as one JSON object; prints each row as it is found."""
    bound = trained.bound
    is_vdm = isinstance(bound, VDM)
    if not is_vdm:
        _check_plain(options, bound)
    images = measure.first(trained.images, options["images"])
    size = options["batch_size"] or trained.batch_size
    setup.check_batch_size(size, mesh)
    if bound.levels is None and (options["chains"] or options["ode_images"]):
        raise UserError(
            "--chains and --ode_images are of discrete images, in bits; this run's decoder is a "
            "Gaussian density (config.model.decoder), in nats: the two can't be compared"
        )
    if options["ode_images"]:
        measure.trace_of(options, trained.vdm)
    key = jax.random.key(options["seed"])
    steps = steps_of(options["num_steps"], bound) if isinstance(bound, VDM) else (None,)
    given_class = images.num_classes > 0
    print(
        f"{trained.name}, step {trained.step}: {len(images.test)} {trained.part} images of "
        f"{images.name}" + (", given their class" if given_class else ""),
        flush=True,
    )
    plan = pilot.plan(trained, size, mesh, options["importance"], options["control_variates"])
    repeats, wanted = options["repeats"] or trained.repeats, options["monte_carlo_error"]
    evaluator = pilot.Evaluator(trained, plan, size, mesh, key, repeats, wanted)

    def at(num_steps: int | None) -> Model:
        return trained.model.with_fields(num_steps=num_steps) if is_vdm else trained.model

    rows: list[measure.Row] = []
    shape: dict[str, Any] = {}
    failed = None
    groups = (images.source or {}).get("test")

    for num_steps in steps:
        of = at(num_steps)
        draws, controlled = evaluator.draw(images, of)
        rows.append(_said(measure.of_draws(controlled, of.bind(trained.params), groups)))
        if is_vdm and (num_steps is None or not shape):
            shape = measure.profile(draws, trained)
    key_chain, key_ode = jax.random.split(jax.random.fold_in(key, 1))

    def compared(count: int, num_steps: int | None) -> None:
        """The bound on the very images that another one is computed for."""
        some = measure.first(images, count)
        if len(some.test) < len(images.test) or num_steps not in steps:
            groups = (some.source or {}).get("test")
            of = at(num_steps)
            draws = evaluator.draw(some, of)[1]
            row = measure.of_draws(draws, of.bind(trained.params), groups)
            row["quantity"] += f", first {len(some.test)} images"
            rows.append(_said(row))

    if options["chains"]:
        compared(options["chain_images"], options["chain_steps"])
        rows.append(_said(measure.chains(trained, images, options, size, mesh, key_chain)))
    if options["ode_images"]:
        compared(options["ode_images"], None)
        asked = options["dequantization"]
        for method in pixels.DEQUANTIZATIONS if asked == "both" else (asked,):
            try:
                row = measure.of_ode(trained, images, options, method, size, mesh, key_ode)
            except UserError as error:  # what was found before is reported nevertheless
                failed = str(error)
                break
            rows.append(_said(row))
    return {
        "model": {"name": trained.name, "step": trained.step},
        "data": setup.describe(images) | {"part": trained.part, "given_class": given_class},
        "groups": None if groups is None else len(np.unique(groups)),
        "rows": rows,
        "pilot_calls": evaluator.pilot_calls,
        "failed": failed,
        "note": bound.note,
        "profile": shape,
    }


def _check_plain(options: Mapping[str, Any], model: Bound) -> None:
    """A model of another kind than a VDM has one bound and no other likelihood."""
    plain = _flags()
    for name in VDM_ONLY:
        if options[name] != plain[name].default:
            raise UserError(f"--{name} is for a VDM; this run is another model: {model.words}")


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


def _said(row: measure.Row) -> measure.Row:
    """The row, printed."""
    estimate = Estimate(results.value(row), row["standard_error"], row["monte_carlo_error"])
    print(f"{row['quantity']}: {estimate} {row['unit']}", flush=True)
    return row


def _check_error(error: float | None, repeats: int | None) -> None:
    if error is None:
        return
    if repeats is not None:
        raise UserError("--monte_carlo_error and --repeats exclude each other: the one sets both")
    if not 0.0 < error < math.inf:
        raise UserError(f"--monte_carlo_error must be positive and finite, got {error:g}")


def _check_tolerance(tolerance: float) -> None:
    try:
        ode.Solver(rtol=tolerance, atol=tolerance).check(jnp.zeros(()).dtype)
    except ValueError as error:
        raise UserError(f"--tolerance={tolerance}: {error}") from error
    if not tolerance <= 0.1:
        raise UserError(f"--tolerance must be at most 0.1, got {tolerance}")


if __name__ == "__main__":
    cli.guard(lambda: evaluate(sys.argv))
