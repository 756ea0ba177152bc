"""Draw samples of a run, a model in one file or a published checkpoint, by any sampler.

    python -m experiments.sample --workdir=DIR [--sampler=dpm_solver] [--num_steps=20] [--n=64]
    python -m experiments.sample --pretrained=digits --out=DIR
    python -m experiments.sample --workdir=DIR --official=PATH --model=cifar10
    python -m experiments.sample --workdir=DIR --quality

Leaves samples.png, a grid; samples.npz with `images` [n, height, width, channels] and what made
them; and samples.json in a new folder below DIR/sampling. --distances says how far the samples are
from the test images, beside the same of training images. --quality measures these distances for
every sampler at several numbers of network calls, and leaves quality.json and quality.md.
"""

import math
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from vdm_jax import files
from vdm_jax.data import image_data, npy
from vdm_jax.errors import UserError, user_path
from vdm_jax.evaluation import report, sample_quality
from vdm_jax.evaluation.subject import Subject
from vdm_jax.rule import SAMPLERS, SPACINGS, Rule, Sampler, Spacing
from vdm_jax.run import build, cli, distributed, restore
from vdm_jax.train import memory, plots

COMPARED: tuple[tuple[Sampler, Spacing], ...] = (  # by --quality, at so many network calls
    ("dpm_solver", "karras"), ("dpm_solver", "gamma"), ("heun", "karras"), ("ddim", "karras"),
    ("ddim", "angle"),
)  # fmt: skip
CALLS = (5, 8, 10, 15, 20, 25, 50)
SINGLE = (
    "sampler", "num_steps", "spacing", "eta", "n", "seed", "class", "condition", "guidance",
    "distances",
)  # fmt: skip


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    text, number, choice = cli.definers(values)
    restore.define_flags(values, "samples", "compare with")
    choice("sampler", "how", SAMPLERS, "dpm_solver")
    number("num_steps", "steps, each one call of the network, of heun two", 20)
    choice("spacing", "of the steps (default time for ancestral, else karras)", SPACINGS, None)
    flags.DEFINE_float("eta", 0.0, "noise of ddim, from 0 to 1", flag_values=values)
    number("n", "how many samples; default 64, or as many as --condition has")
    number("batch_size", "samples at once, over all devices; default that of an evaluation")
    number("seed", "settles all noise", 0, 0, 2**32 - 1)
    number("class", "of all samples, if the model is given one; default each in turn", None, 0)
    text("condition", "an .npy file [m, ...], in turn; default those of the test images")
    about = "scale s of guidance: eps is (1 + s) times the conditional, less s times the other"
    flags.DEFINE_float("guidance", 0.0, about, flag_values=values)
    flags.DEFINE_bool("distances", False, "compare with the test images", flag_values=values)
    flags.DEFINE_bool("quality", False, "compare the samplers instead", flag_values=values)
    return values


def sample(argv: list[str]) -> dict[str, Any]:
    """Draws as `argv` asks for; writes and returns what samples.json or quality.json holds."""
    values = _flags()
    options, _ = cli.parse_flags(values, argv, __doc__)
    distributed.start(values)
    rule = _rule(options)
    mesh = build.make_mesh()
    subject = restore.from_options(options, mesh)
    options["turns"] = _turns(subject, options)
    options["n"] = options["n"] or (len(options["turns"]) if options["condition"] else 64)
    _check(subject, options)
    parent = build.make_workdir(Path(options["out"] or f"{options['workdir']}/sampling"), "out")
    found: dict[str, Any] = {"model": {"name": subject.name, "step": subject.step}}
    with memory.exhausted(memory.lower_batch(subject.batch_size)):
        if options["quality"]:
            say = lambda row: print(*report.of_quality(row), sep=", ", flush=True)  # noqa: E731
            found["quality"] = sample_quality.quality(subject, _rules(), say=say)
        else:
            images = _draw(subject, rule, options, found)
    found["data"] = build.describe(subject.images)
    found["command"] = shlex.join(["python", "-m", "experiments.sample", *argv[1:]])
    if jax.process_index() == 0:
        folder = report.new_folder(parent, subject.step)
        if options["quality"]:
            files.write_json(folder / "quality.json", found)
            text = report.table(report.QUALITY, map(report.of_quality, found["quality"])) + "\n"
            files.write(folder / "quality.md", f"    {found['command']}\n\n{text}")
            print(f"\n{text}written to {folder}")
        else:
            _write(folder, found, images, subject, options["distances"])
    return found


def _rule(options: Mapping[str, Any]) -> Rule:
    """Returns how to sample. Raises UserError for an eta that can't be, or what --quality sets."""
    plain = _flags()
    for name in SINGLE:
        if options["quality"] and options[name] != plain[name].default:
            raise UserError(f"--{name} goes not with --quality, which compares many; leave it out")
    name, eta = options["sampler"], options["eta"]
    if not 0.0 <= eta <= (name == "ddim"):
        raise UserError(f"--eta={eta}: wanted a number from 0 to 1, of --sampler=ddim alone")
    return Rule(name, options["num_steps"], options["spacing"], eta)


def _rules() -> list[Rule]:
    steps = range(1, max(CALLS) + 1)
    every = (Rule(sampler, n, spacing) for sampler, spacing in COMPARED for n in steps)
    fast = [rule for rule in every if rule.network_calls in CALLS]
    return [*fast, *(Rule("ancestral", n, "time") for n in (25, 250, 1000))]


def _check(subject: Subject, options: Mapping[str, Any]) -> None:
    """Raises UserError, before anything is drawn, for what would fail after it."""
    _ = subject.vdm  # refuses other kinds
    build.check_batch_size(subject.batch_size, subject.mesh)
    data, guidance = subject.images, options["guidance"]
    if not 0.0 <= guidance < math.inf:
        raise UserError(f"--guidance={guidance:g}: wanted a finite number of at least 0")
    if guidance and not subject.settings.get("condition_dropout"):
        said = "needs a model that was also trained without its condition"
        raise UserError(f"--guidance {said}: train one with config.model.condition_dropout=0.1")
    if guidance and subject.settings.get("gamma") == "conditional_path":
        said = "needs one schedule for all conditions; of this run gamma is conditional_path"
        raise UserError(f"--guidance {said}: leave it out")
    if not (options["distances"] or options["quality"]):
        return
    if options["class"] is not None:
        said = "samples of one --class can't be compared with the test images, which are of all"
        raise UserError(f"{said}: leave out --distances, or --class")
    drawn = len(data.test) if options["quality"] else options["n"]
    counts = drawn, len(data.test), len(data.train)
    if min(counts) < 3:
        raise UserError(f"distances need 3 samples (--n), 3 test, 3 training images, not {counts}")
    compared = data.test[: min(*counts, sample_quality.POINTS)]
    if (compared == compared[0]).all():
        raise UserError(f"distances need test images that differ; {len(compared)} are the same")


def _turns(subject: Subject, options: Mapping[str, Any]) -> np.ndarray | None:
    """Returns the conditions that samples take in turn, if not `ImageData.turns`.

    Raises UserError for those that aren't of the model's kind.
    """
    (classes, numbers), label = subject.images.condition, options["class"]
    if label is not None and options["condition"]:
        raise UserError("--class and --condition exclude each other: a model takes one of both")
    if label is not None:
        if not label < classes:
            known = f"the classes are 0 to {classes - 1}" if classes else "the model has none"
            raise UserError(f"--class={label}: {known}")
        return np.array([[label]])
    if not options["condition"]:
        return None
    path = user_path(options["condition"], "--condition")
    try:
        array = npy.mapped(path)
    except ValueError as error:
        raise UserError(f"--condition={path}: {error}") from error
    rows = image_data.as_conditions(array, f"--condition={path}")
    if rows.shape[1] != numbers:
        said = f"has {rows.shape[1]} numbers a row; the model is conditioned on {numbers}"
        raise UserError(f"--condition={path} {said}")
    return rows


def _draw(
    subject: Subject, rule: Rule, options: Mapping[str, Any], found: dict[str, Any]
) -> np.ndarray:
    """Returns the samples; `found` gets how they were drawn, and how long it took."""
    n, guidance, *given = (options[name] for name in ("n", "guidance", "seed", "turns"))
    calls = rule.network_calls * (2 if guidance else 1)
    how = f"{rule.sampler}, {rule.num_steps} steps ({rule.spacing}), {calls} calls"
    name = f"{subject.name}, step {subject.step}"
    scale = f", guided with scale {guidance:g}" if guidance else ""
    print(f"{name}: {n} samples by {how} of the network each{scale}", flush=True)
    began = time.monotonic()
    images = sample_quality.Drawer(subject, rule, guidance).draw(rule, n, *given)
    found["settings"] = {**vars(rule), "network_calls": calls, "n": n}
    found["settings"] |= {name: options[name] for name in ("seed", "class", "condition")}
    found["settings"]["guidance"] = guidance or None
    found["seconds"] = round(time.monotonic() - began, 2)
    return images


def _write(
    folder: Path, found: dict[str, Any], images: np.ndarray, subject: Subject, compare: bool
) -> None:
    """Writes samples.png, samples.npz and samples.json.

    What was drawn is written before its distances are computed, which go into `found`.
    """
    levels = subject.images.levels
    kept = {name: value for name, value in found["settings"].items() if value is not None}
    kept |= {"images": images.astype(np.uint8 if levels <= 256 else np.uint16), "levels": levels}
    with files.whole(folder / "samples.npz") as file:
        np.savez_compressed(file, step=found["model"]["step"], **kept)
    plots.write_image(folder / "samples.png", plots.image_grid(images, levels))
    with memory.exhausted(lambda said: UserError(f"no distances: out of memory ({said})")):
        found["distances"] = sample_quality.distances(subject.images, images) if compare else []
    files.write_json(folder / "samples.json", found)
    if found["distances"]:
        print(report.of_distances(found["distances"]))
    print(f"{len(images)} samples in {found['seconds']:.1f} s, written to {folder}")


if __name__ == "__main__":
    cli.guard(lambda: sample(sys.argv))
