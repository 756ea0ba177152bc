"""Draw samples of a run, or of a published checkpoint, by any sampler.

    python -m experiments.sample --workdir=DIR [--sampler=dpm_solver] [--num_steps=20] [--n=64]
    python -m experiments.sample --workdir=DIR --official=PATH --model=cifar10
    python -m experiments.sample --workdir=DIR --quality

Leaves samples.png, a grid; samples.npz with `images` [n, height, width, channels] and what made
them; and samples.json in a new folder below DIR/sampling. --distances says how far the samples are
from the test images, beside the same of training images. --quality draws nothing to look at: it
measures these distances for every sampler at several numbers of network calls, and leaves
quality.json and quality.md there.
"""

import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from vdm_jax import solvers, spacing
from vdm_jax.data import DataError
from vdm_jax.evaluation import report as results
from vdm_jax.evaluation import sample_quality as sampling
from vdm_jax.evaluation.sample_quality import Rule
from vdm_jax.run import build as setup
from vdm_jax.run import cli
from vdm_jax.run import distributed as cluster
from vdm_jax.run import restore as trained
from vdm_jax.run.cli import UserError
from vdm_jax.run.restore import Restored
from vdm_jax.solvers import SAMPLERS, Sampler
from vdm_jax.spacing import Spacing
from vdm_jax.train import memory, plots
from vdm_jax.train.checkpoint import CheckpointError
from vdm_jax.train.progress import Bar

CALLS = (5, 8, 10, 15, 20, 25, 50)  # of --quality


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    _, number, choice = cli.definers(values)
    trained.define_flags(values, "samples", "compare with")
    choice("sampler", "how", SAMPLERS, "dpm_solver")
    number("num_steps", "steps, each one call of the network, of heun two", 20)
    choice(
        "spacing", "of the steps (default time for ancestral, else karras)", spacing.SPACINGS, None
    )
    flags.DEFINE_float("eta", 0.0, "noise of ddim, from 0 to 1", flag_values=values)
    number("n", "how many samples", 64)
    number("batch_size", "samples at once, over all devices; default that of an evaluation")
    number("seed", "settles all noise", 0, 0, 2**32 - 1)
    number("class", "of all samples, if the model is given one; default each in turn", None, 0)
    flags.DEFINE_bool("distances", False, "compare with the test images", flag_values=values)
    flags.DEFINE_bool("quality", False, "compare the samplers instead", flag_values=values)
    return values


def sample(argv: list[str]) -> dict[str, Any]:
    """Parse `argv`, draw, write the files; what samples.json or quality.json holds is returned."""
    values = _flags()
    cli.parse_flags(values, argv, __doc__)
    cluster.start(values)
    options: dict[str, Any] = {name: values[name].value for name in values if name != "help"}
    if not options["workdir"]:
        raise UserError("--workdir=DIR is missing: the folder of the run, or for the samples")
    rule = _rule(options)
    if options["quality"]:
        _check_quality(options)
    mesh = setup.make_mesh()
    workdir = Path(options["workdir"])
    try:
        model = trained.from_options(workdir, options, mesh)
        size = options["batch_size"] or model.batch_size
        _check_model(model, size, options, mesh)
        parent = setup.make_workdir(workdir / "sampling")
        with memory.exhausted(setup.lower_batch(size)):
            if not options["quality"]:
                images, seconds = _draw(model, rule, options, size, mesh)
                found = {
                    "settings": {**vars(rule), "network_calls": rule.network_calls}
                    | {name: options[name] for name in ("n", "seed", "class")},
                    "seconds": seconds,
                    "distances": sampling.distances(model, images) if options["distances"] else [],
                }
            else:
                of = model._replace(batch_size=size)
                found = {"quality": sampling.quality(of, _rules(), mesh, say=_say_row)}
    except (DataError, CheckpointError) as error:
        raise UserError(str(error)) from error
    found = {"model": {"name": model.name, "step": model.step}} | found
    found["data"] = setup.describe(model.images)
    found["command"] = shlex.join(["python", "-m", "experiments.sample", *argv[1:]])
    if jax.process_index() == 0:
        with cli.writing(parent):
            folder = results.new_folder(parent, model.step)
            if options["quality"]:
                _write_quality(folder, found)
            else:
                _write(folder, found, images, model.images.levels)
    return found


def _rule(options: Mapping[str, Any]) -> Rule:
    """How to sample. Raises UserError for an eta that can't be."""
    name = options["sampler"]
    try:
        solvers.needs_noise(name, options["eta"])
    except ValueError as error:
        raise UserError(f"--eta={options['eta']}: {error}") from error
    spaced = options["spacing"] or solvers.default_spacing(name)
    return Rule(name, options["num_steps"], spaced, options["eta"])


def _check_quality(options: Mapping[str, Any]) -> None:
    """--quality has its own samplers and numbers. Raises UserError for a flag that it ignores."""
    plain = _flags()
    for name in ("sampler", "num_steps", "spacing", "eta", "n", "seed", "class", "distances"):
        if options[name] != plain[name].default:
            raise UserError(f"--{name} goes not with --quality, which compares many; leave it out")


def _check_model(model: Restored, size: int, options: Mapping[str, Any], mesh: Mesh) -> None:
    """Before anything is drawn. Raises UserError for what would fail after it."""
    _ = model.vdm  # refuses other kinds
    setup.check_batch_size(size, mesh)
    drawn = len(model.images.test) if options["quality"] else options["n"]
    compared = min(drawn, len(model.images.test), len(model.images.train))
    if (options["distances"] or options["quality"]) and compared < 3:
        raise UserError(
            f"distances need at least 3 samples (--n), 3 test and 3 training images; got {drawn}, "
            f"{len(model.images.test)} and {len(model.images.train)}"
        )


def _rules() -> list[Rule]:
    """Those that --quality compares."""
    compared: tuple[tuple[Sampler, tuple[Spacing, ...]], ...] = (
        ("dpm_solver", ("karras", "gamma")),
        ("heun", ("karras",)),
        ("ddim", ("karras", "angle")),
    )
    fast = [
        Rule(name, calls // solvers.network_calls(name, 1), spaced)
        for name, spacings in compared
        for spaced in spacings
        for calls in CALLS
        if calls % solvers.network_calls(name, 1) == 0
    ]
    return [*fast, *(Rule("ancestral", steps, "time") for steps in (25, 250, 1000))]


def _draw(
    model: Restored, rule: Rule, options: Mapping[str, Any], size: int, mesh: Mesh
) -> tuple[np.ndarray, float]:
    """The samples, and how long they took, with the compilation."""
    n = options["n"]
    batches = -(-n // min(size, mesh.size * -(-n // mesh.size)))
    print(
        f"{model.name}, step {model.step}: {n} samples by {rule.sampler}, {rule.num_steps} steps "
        f"({rule.spacing}), {rule.network_calls} calls of the network each",
        flush=True,
    )
    began = time.monotonic()
    with Bar("network calls", batches * rule.network_calls) as bar:
        images = sampling.draw(
            model, rule, n, size, options["seed"], mesh, options["class"], bar.advance
        )
    return images, round(time.monotonic() - began, 2)


# ---- files and words ----


def _write(folder: Path, found: Mapping[str, Any], images: np.ndarray, levels: int) -> None:
    """samples.png, samples.npz and samples.json."""
    plots.write_image(folder / "samples.png", plots.image_grid(images, levels))
    settings = {name: value for name, value in found["settings"].items() if value is not None}
    kept = images.astype(np.uint8 if levels <= 256 else np.uint16)
    np.savez_compressed(
        folder / "samples.npz", images=kept, levels=levels, step=found["model"]["step"], **settings
    )
    (folder / "samples.json").write_text(json.dumps(found, indent=1) + "\n")
    if found["distances"]:
        print(_distances(found["distances"]))
    print(f"{len(images)} samples in {found['seconds']:.1f} s, written to {folder}")


def _distances(rows: list[dict[str, Any]]) -> str:
    head = ("to as many test images", "images", "MMD² x1000", "by chance", "sliced W2² x1000")
    cells = []
    for row in rows:
        cell = [row["images"], str(row["count"])]
        for name in ("mmd", "sliced_wasserstein"):
            mean, deviation = row[f"{name}_by_chance"]
            cell += [f"{1e3 * row[name]:.3f}", f"{1e3 * mean:.3f} ± {1e3 * deviation:.3f}"]
        cells.append(cell)
    return results.table((*head, "by chance"), cells)


def _say_row(row: Mapping[str, Any]) -> None:
    print(", ".join(_cells(row)), flush=True)


def _cells(row: Mapping[str, Any]) -> list[str]:
    values = [
        f"{1e3 * row[name]:.3f} ± {1e3 * row[f'{name}_error']:.3f}"
        for name in ("mmd", "sliced_wasserstein")
    ]
    return [
        row["sampler"],
        row["spacing"],
        str(row["calls"] or "-"),
        *values,
        f"{row['seconds']:.1f}",
    ]


def _write_quality(folder: Path, found: Mapping[str, Any]) -> None:
    """quality.json and quality.md."""
    (folder / "quality.json").write_text(json.dumps(found, indent=1) + "\n")
    head = ("sampler", "spacing", "network calls", "MMD² x1000", "sliced W2² x1000", "seconds")
    text = results.table(head, map(_cells, found["quality"])) + "\n"
    (folder / "quality.md").write_text(f"    {found['command']}\n\n{text}")
    print(f"\n{text}written to {folder}")


if __name__ == "__main__":
    cli.guard(lambda: sample(sys.argv))
