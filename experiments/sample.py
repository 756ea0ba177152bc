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

from vdm_jax import solvers, spacing
from vdm_jax.evaluation import report as results
from vdm_jax.evaluation import sample_quality as sampling
from vdm_jax.evaluation.sample_quality import Rule
from vdm_jax.evaluation.subject import Subject
from vdm_jax.run import build as setup
from vdm_jax.run import cli
from vdm_jax.run import distributed as cluster
from vdm_jax.run import restore as trained
from vdm_jax.run.cli import UserError
from vdm_jax.run.restore import Restored
from vdm_jax.solvers import Sampler
from vdm_jax.spacing import Spacing
from vdm_jax.train import memory, plots
from vdm_jax.train.progress import Bar

CALLS = (5, 8, 10, 15, 20, 25, 50)  # of --quality
COMPARED: dict[Sampler, tuple[Spacing, ...]] = {  # the rules of --quality: spacings of each sampler
    "dpm_solver": ("karras", "gamma"), "heun": ("karras",), "ddim": ("karras", "angle")
}  # fmt: skip


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    _, number, choice = cli.definers(values)
    trained.define_flags(values, "samples", "compare with")
    choice("sampler", "how", solvers.SAMPLERS, "dpm_solver")
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
    """Draws as `argv` asks for; writes and returns what samples.json or quality.json holds."""
    values = _flags()
    cli.parse_flags(values, argv, __doc__)
    cluster.start(values)
    options: dict[str, Any] = {name: values[name].value for name in values if name != "help"}
    if not options["workdir"]:
        raise UserError("--workdir=DIR is missing: the folder of the run, or for the samples")
    rule = _rule(options)
    mesh = setup.make_mesh()
    workdir = Path(options["workdir"])
    model = trained.from_options(workdir, options, mesh)
    subject = model.on(mesh, options["batch_size"])
    _check(model, subject, options)
    parent = setup.make_workdir(workdir / "sampling")
    found: dict[str, Any] = {"model": {"name": model.name, "step": model.step}}
    with memory.exhausted(setup.lower_batch(subject.batch_size)):
        if options["quality"]:
            found["quality"] = sampling.quality(subject, _rules(), say=_say)
        else:
            images = _draw(model, subject, rule, options, found)
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
    """Returns how to sample. Raises UserError for an eta that can't be, or what --quality sets."""
    plain = _flags()
    for name in ("sampler", "num_steps", "spacing", "eta", "n", "seed", "class", "distances"):
        if options["quality"] and options[name] != plain[name].default:
            raise UserError(f"--{name} goes not with --quality, which compares many; leave it out")
    name, eta = options["sampler"], options["eta"]
    if not 0.0 <= eta <= (name == "ddim"):
        raise UserError(f"--eta={eta}: wanted a number from 0 to 1, of --sampler=ddim alone")
    spaced = options["spacing"] or solvers.default_spacing(name)
    return Rule(name, options["num_steps"], spaced, eta)


def _rules() -> list[Rule]:
    """Returns those that --quality compares."""
    fast = [
        Rule(name, calls // each, spaced)
        for name, spacings in COMPARED.items()
        for spaced in spacings
        for calls in CALLS
        if calls % (each := solvers.network_calls(name, 1)) == 0
    ]
    return [*fast, *(Rule("ancestral", steps, "time") for steps in (25, 250, 1000))]


def _check(model: Restored, subject: Subject, options: Mapping[str, Any]) -> None:
    """Raises UserError, before anything is drawn, for what would fail after it."""
    _ = model.vdm  # refuses other kinds
    setup.check_batch_size(subject.batch_size, subject.mesh)
    data, label = model.images, options["class"]
    if label is not None and not label < data.num_classes:
        raise UserError(
            f"--class={label}: "
            + (
                f"the classes are 0 to {data.num_classes - 1}"
                if data.num_classes
                else f"{model.name} is not conditioned on the class"
            )
        )
    drawn = len(data.test) if options["quality"] else options["n"]
    if (options["distances"] or options["quality"]) and (
        min(drawn, len(data.test), len(data.train)) < 3
    ):
        raise UserError(
            f"distances need at least 3 samples (--n), 3 test and 3 training images; got {drawn}, "
            f"{len(data.test)} and {len(data.train)}"
        )


def _draw(
    model: Restored, subject: Subject, rule: Rule, options: Mapping[str, Any], found: dict[str, Any]
) -> np.ndarray:
    """Returns the samples; `found` gets how, how long it took, and their distances."""
    n, mesh = options["n"], subject.mesh
    batches = -(-n // min(subject.batch_size, mesh.size * -(-n // mesh.size)))
    print(
        f"{model.name}, step {model.step}: {n} samples by {rule.sampler}, {rule.num_steps} steps "
        f"({rule.spacing}), {rule.network_calls} calls of the network each",
        flush=True,
    )
    began = time.monotonic()
    with Bar("network calls", batches * rule.network_calls) as bar:
        images = sampling.draw(subject, rule, n, options["seed"], options["class"], bar.advance)
    found["settings"] = {**vars(rule), "network_calls": rule.network_calls}
    found["settings"] |= {name: options[name] for name in ("n", "seed", "class")}
    found["seconds"] = round(time.monotonic() - began, 2)
    asked = options["distances"]
    found["distances"] = sampling.distances(model.images, images) if asked else []
    return images


def _say(row: Mapping[str, Any]) -> None:
    print(", ".join(results.of_quality(row)), flush=True)


def _write(folder: Path, found: Mapping[str, Any], images: np.ndarray, levels: int) -> None:
    """Writes samples.png, samples.npz and samples.json."""
    plots.write_image(folder / "samples.png", plots.image_grid(images, levels))
    settings = {name: value for name, value in found["settings"].items() if value is not None}
    kept = images.astype(np.uint8 if levels <= 256 else np.uint16)
    np.savez_compressed(
        folder / "samples.npz", images=kept, levels=levels, step=found["model"]["step"], **settings
    )
    (folder / "samples.json").write_text(json.dumps(found, indent=1) + "\n")
    if found["distances"]:
        print(results.of_distances(found["distances"]))
    print(f"{len(images)} samples in {found['seconds']:.1f} s, written to {folder}")


def _write_quality(folder: Path, found: Mapping[str, Any]) -> None:
    """Writes quality.json and quality.md."""
    (folder / "quality.json").write_text(json.dumps(found, indent=1) + "\n")
    text = results.table(results.QUALITY, map(results.of_quality, found["quality"])) + "\n"
    (folder / "quality.md").write_text(f"    {found['command']}\n\n{text}")
    print(f"\n{text}written to {folder}")


if __name__ == "__main__":
    cli.guard(lambda: sample(sys.argv))
