"""Evaluate a run, or a published checkpoint: bits per dim, each with its error bar and its kind.

    python -m experiments.evaluate --workdir=DIR [--checkpoint=STEP] [--num_steps=10,100,1000,inf]
    python -m experiments.evaluate --workdir=DIR --official=PATH --model=cifar10

One exact pass over the test images; --num_steps prints the bound for each number of steps T, from
one model and the same draws. With --ode_images=N the probability-flow ODE's likelihood stands
beside it, with --chains=K the importance-weighted bound. Leaves result.json, result.md and a plot
of what each noise level costs in a new folder below DIR/evaluation.
"""

import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import cli, measure, results, setup, trained
from experiments.cli import UserError
from vdm_jax import divergence, pixels
from vdm_jax.data import DataError
from vdm_jax.train.checkpoint import CheckpointError


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()

    def text(name: str, about: str, default: str | None = None) -> None:
        flags.DEFINE_string(name, default, about, flag_values=values)

    def number(name: str, about: str, default: int | None = None, low: int = 1) -> None:
        flags.DEFINE_integer(name, default, about, lower_bound=low, flag_values=values)

    def choice(name: str, about: str, known: tuple[str, ...], default: str) -> None:
        flags.DEFINE_enum(name, default, known, f"{about}: {', '.join(known)}", flag_values=values)

    text("workdir", "folder of the run; with --official, where the results go")
    text("checkpoint", "a step of the run, or a checkpoint's folder; the newest if not given")
    text("official", "a published checkpoint: the file ckpt-N.flax, or its folder")
    text("model", "its configuration: cifar10, cifar10_aug, imagenet32, imagenet64, or a JSON file")
    text("data", "evaluate on other images: the name of a data set")
    text("path", "the file or folder of --data=arrays or folder")
    text("manual_dir", "folder with a data set's original archives")
    text("data_dir", "where data sets are kept; default $VDM_JAX_DATA")
    number("repeats", "draws of time and noise per image; default that of the configuration")
    text("num_steps", "T, or several: 10,100,1000,inf; inf is continuous time; default the model's")
    number("batch_size", "images at once, over all devices; default that of the configuration")
    number("images", "take the first N test images only")
    number("seed", "settles all draws", 0, 0)
    flags.DEFINE_bool(
        "importance", False, "draw times by importance, from a loss profile measured on training "
        "images", flag_values=values,
    )  # fmt: skip
    number("chains", "K of the importance-weighted bound; 0: without it", 0, 0)
    number("chain_steps", "its T", 100)
    number("chain_images", "how many images it is computed for", 64)
    number("ode_images", "how many images the ODE is solved for; 0: none", 0, 0)
    choice("dequantization", "of the ODE", (*pixels.DEQUANTIZATIONS, "both"), "truncated_normal")
    number("ode_samples", "draws of the dequantisation that one bound is made of", 1)
    choice("trace", "of the ODE", (*divergence.TRACES, "auto"), "auto")
    choice("probes", "of --trace=hutchinson", divergence.PROBES, "rademacher")
    number("num_probes", "of --trace=hutchinson", 1)
    flags.DEFINE_float("tolerance", 1e-5, "of the ODE, relative and absolute", flag_values=values)
    return values


def evaluate(argv: list[str]) -> dict[str, Any]:
    """Parse `argv`, evaluate, write and print the results; they are returned as in result.json."""
    values = _flags()
    cli.parse_flags(values, argv, __doc__)
    options: dict[str, Any] = {name: values[name].value for name in values if name != "help"}
    if not options["workdir"]:
        raise UserError("--workdir=DIR is missing: the folder of the run, or for the results")
    if not options["tolerance"] > 0:
        raise UserError(f"--tolerance must be above 0, got {options['tolerance']}")
    if options["official"] and options["checkpoint"]:
        raise UserError("--official and --checkpoint exclude each other")
    mesh = setup.make_mesh()
    workdir = Path(options["workdir"])
    names = {"name": "data", "path": "path", "manual_dir": "manual_dir", "dir": "data_dir"}
    data = {key: options[flag] for key, flag in names.items() if options[flag] is not None}
    try:
        if options["official"]:
            model = trained.from_official(Path(options["official"]), options["model"], data, mesh)
        else:
            if options["model"]:
                raise UserError("--model goes with --official; a run has its own configuration")
            model = trained.from_workdir(workdir, options["checkpoint"], data, mesh)
        found = measure.everything(model, options, mesh)
        folder = results.new_folder(setup.make_workdir(workdir) / "evaluation", model.step)
    except (DataError, CheckpointError) as error:
        raise UserError(str(error)) from error
    found["command"] = " ".join(["python -m experiments.evaluate", *argv[1:]])
    if jax.process_index() == 0:
        results.write(folder, found)
    return found


if __name__ == "__main__":
    cli.guard(lambda: evaluate(sys.argv))
