"""The ladder from the VAE to the flow, on digits: the tables and plots of docs/ladder.md.

    python -m experiments.ladder --workdir=DIR [--out=docs] [--scale=1.0]

Trains a VAE, hierarchical VAEs, VDMs and what lies between them, below DIR, each with about as many
parameters and for about as long, and evaluates them on the same test images. A run that is there
already is not trained again. Leaves all numbers in DIR/ladder.json. --scale shortens or lengthens
every training, for a copy of the page in another --out.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import closed_forms, ladder_tables, trainings
from experiments.configs import binomial, digits, mhvae, vae
from experiments.ladder_tables import PREDICTIONS
from experiments.toy2d import mean, toy2d
from experiments.toy_models import STEPS as STEPS_2D
from vdm_jax import files, loss
from vdm_jax.data import ImageData
from vdm_jax.evaluation.likelihood import Row
from vdm_jax.evaluation.subject import Subject
from vdm_jax.run import build, cli
from vdm_jax.train.logging import read_metrics
from vdm_jax.train.model import unit

_SHORT, _LONG = {"train.steps": 1_500}, {"train.steps": 3_000}
_CURVE = _SHORT | {"eval.every": 150, "eval.repeats": 8}
_WIDE = {"hierarchy.data_size": True, "model.channels": 116}
_CHAIN = _SHORT | {"hierarchy.depth": 4, "hierarchy.data_size": True}
_FIXED = _CHAIN | {"hierarchy.fixed_encoder": True}
_THREE = _LONG | {"model.num_steps": 3}
_ENDS = {"hierarchy.ends_at_normal": True}
FOUR, LAST = "hierarchical VAE, 4 latents", "VDM, continuous time"
STEPS = (10, 50, 1000)  # numbers of steps T that the reverse variances are compared at

# group -> name -> (configuration, what differs from it). A group is a table of the page.
RUNS: dict[str, dict[str, tuple[Callable[[], ConfigDict], dict[str, Any]]]] = {
    "rung": {
        "VAE": (vae.get_config, {}),
        "hierarchical VAE, 2 latents": (lambda: mhvae.get_config("2"), {}),
        FOUR: (mhvae.get_config, {}),
        "hierarchical VAE, 8 latents": (lambda: mhvae.get_config("8"), {}),
        "VDM, T = 10": (digits.get_config, _LONG | {"model.num_steps": 10}),
        "VDM, T = 100": (digits.get_config, _LONG | {"model.num_steps": 100}),
        LAST: (digits.get_config, _LONG),
    },
    # From the hierarchical VAE of 4 latents to the VDM of T = 3, one restriction after the other.
    "restriction": {
        "latents of data size": (mhvae.get_config, _WIDE),
        "and a fixed linear-Gaussian encoder": (digits.get_config, _FIXED),
        "and a schedule that ends at N(0, I)": (digits.get_config, _FIXED | _ENDS),
        "the same as a VDM, a random step at a time": (digits.get_config, _THREE),
    },
    "variance": {
        f"{kind}, T = {steps}": (
            digits.get_config, _SHORT | {"model.num_steps": steps, "model.reverse_var": kind},
        )
        for steps in STEPS for kind in ("posterior", "learned")
    },
    "objective": {
        head: (digits.get_config, _CURVE | {"model.head": head}) for head in PREDICTIONS
    },
    "density": {
        "VAE": (vae.get_config, {"model.decoder": "density"}),
        LAST: (digits.get_config, _SHORT | {"model.decoder": "density"}),
    },
    "bits": {
        "Bernoulli VAE": (vae.get_config, {"data.name": "digits_binary", "train.steps": 2_500}),
        "binomial diffusion, T = 10": (binomial.get_config, _SHORT | {"model.num_steps": 10}),
        "binomial diffusion, T = 1000": (binomial.get_config, _SHORT),
    },
}  # fmt: skip


def ladder(argv: list[str]) -> dict[str, Any]:
    """Parses `argv`, trains, evaluates, and puts the numbers, which are returned, into the page."""
    workdir, page, scale = trainings.parse(argv, __doc__, "ladder.md", ladder_tables.TABLES)
    at = _Ladder(workdir, build.make_mesh(), scale)
    grey, binary = build.load(digits.get_config()), build.load(binomial.get_config())
    rungs = _rungs(at)
    found: dict[str, Any] = {
        "scale": scale,
        "histogram": _histogram_row(grey),
        "rungs": rungs,
        "restrictions": [
            *(row | {"name": "none"} for row in rungs if row["name"] == FOUR),
            *(at.row("restriction", name) for name in RUNS["restriction"]),
        ],
        "variances": [row for steps in STEPS for row in _variances(at, steps)],
        "objectives": [_objective(at, name) for name in RUNS["objective"]],
        "densities": [at.row("density", name) for name in RUNS["density"]],
        "bits": [
            _histogram_row(binary) | {"name": "Bernoulli histogram"},
            *(at.row("bits", name) for name in RUNS["bits"]),
        ],
        "flow": trainings.likelihoods(at.train("rung", LAST)[0]),  # of the same VDM
        "forward": closed_forms.forgetting(),
        "priors": closed_forms.prior_nats_per_dim(grey.test, grey.levels),
        "reverse": closed_forms.reverse_step(),
        "points": _points(at, page.with_suffix("")),
        "minutes": at.minutes,
    }
    files.write_json(workdir / "ladder.json", found)
    ladder_tables.write(page, found)
    print(f"{at.minutes:.1f} minutes of training; written to {page}")
    return found


@dataclasses.dataclass
class _Ladder:
    """The folder of the runs, and what their trainings took."""

    workdir: Path
    mesh: Mesh
    scale: float
    minutes: float = 0.0

    def folder(self, group: str, name: str) -> Path:
        """Returns the folder of a run."""
        return self.workdir / "-".join(re.sub("[(),=]", "", f"{group} {name}").split())

    def train(self, group: str, name: str) -> tuple[Subject, Row]:
        """Returns the trained model, and its number of parameters, steps and minutes."""
        print(f"\n== {group}: {name}", flush=True)
        base, changes = RUNS[group][name]
        once = {"eval.final_repeats": 1}  # the bound that is reported is evaluated afterwards
        config = trainings.make_config(base(), changes | once, self.scale)
        model, minutes = trainings.train(config, self.folder(group, name), self.mesh)
        self.minutes += minutes
        parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        about = {"parameters": parameters, "steps": config.train.steps, "minutes": minutes}
        return model, {"name": name} | about

    def row(self, group: str, name: str) -> Row:
        """Returns the row of one run: its bound, parameters, steps and minutes."""
        model, about = self.train(group, name)
        return _bound(model)[0] | about


def _bound(model: Subject, **fields: Any) -> tuple[Row, np.ndarray]:
    """Returns the bound's row, and its total by draw and image, in the model's unit."""
    row, draws, model = trainings.bound(model, **fields)
    return row, np.asarray(unit(model.bound).of(draws.terms.total, model.bound.event_shape))


def _rungs(at: _Ladder) -> list[Row]:
    """Returns the ladder's rows, each with its gain over the one before, image by image."""
    rows: list[Row] = []
    before = None
    for name in RUNS["rung"]:
        model, about = at.train("rung", name)
        row, bits = _bound(model)
        gain = None if before is None else difference(before, bits)
        rows.append(row | about | {"gain": gain})
        before = bits
    return rows


def _variances(at: _Ladder, steps: int) -> list[Row]:
    """Returns the bounds of three reverse variances, and their gains over the posterior's."""
    fixed, about = at.train("variance", f"posterior, T = {steps}")
    learned, learned_about = at.train("variance", f"learned, T = {steps}")
    row, base = _bound(fixed)
    rows = [row | about | {"num_steps": steps, "kind": "posterior", "gain": None}]
    for kind, model, of in (("transition", fixed, about), ("learned", learned, learned_about)):
        row, bits = _bound(model, reverse_var=kind)
        gain = difference(base, bits)
        rows.append(row | of | {"num_steps": steps, "kind": kind, "gain": gain})
    return rows


def _objective(at: _Ladder, name: str) -> Row:
    """Returns a parameterization's row, with its test bound during training."""
    row = at.row("objective", name)
    lines = read_metrics(at.folder("objective", name) / "metrics.jsonl")
    curve = [(line["step"], line["bpd"]) for line in lines if line["split"] == "test"]
    return row | {"curve": curve}


def _points(at: _Ladder, pictures: Path) -> dict[str, Any]:
    found, folder = {}, at.workdir / "points"
    for kind in ("vdm", "cnf"):
        print(f"\n== swirl by {kind}", flush=True)
        steps = max(round(STEPS_2D[kind] * at.scale), 20)
        result = folder / f"swirl-{kind}-{steps}-0.json"
        if not result.exists():
            toy2d(["toy2d", f"--workdir={folder}", f"--model={kind}", f"--steps={steps}"])
        found[kind] = json.loads(result.read_text(encoding="utf-8"))
        files.write(pictures / f"swirl-{kind}.png", result.with_suffix(".png").read_bytes())
    return found


def histogram(train: np.ndarray, test: np.ndarray, levels: int) -> np.ndarray:
    """Returns bits per dim of each test image, each pixel by its frequencies in training images.

    Half an observation is added to each value (Jeffreys' prior): no probability is zero.
    """
    counts = np.stack([(train == level).sum(axis=0) for level in range(levels)]) + 0.5
    log_p = np.log(counts / counts.sum(axis=0))
    picked = np.take_along_axis(log_p, test.astype(np.int64), axis=0)
    nats = -picked.reshape(len(test), -1).sum(axis=1)
    return np.asarray(loss.bits_per_dim(nats, test.shape[1:]), np.float64)


def _histogram_row(images: ImageData) -> Row:
    return mean(histogram(images.train, images.test, images.levels), "bpd")


def difference(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Returns the mean of `before` - `after`, [draws, images], and its standard error."""
    return mean(before.mean(axis=0) - after.mean(axis=0), "mean")


if __name__ == "__main__":
    cli.guard(lambda: ladder(sys.argv))
