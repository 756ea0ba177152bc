"""The whole ladder, from the VAE to the flow, on digits: docs/ladder.md and its plots.

    python -m experiments.ladder --workdir=DIR [--out=docs] [--scale=1.0]

Trains a VAE, hierarchical VAEs, VDMs and what lies between them, below DIR, each with about as many
parameters and for about as long, and measures them on the same test images. A run that is there
already is not trained again. --scale shortens or lengthens every training; docs/ladder.md is made
with 1.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import priors, rungs, series
from experiments.configs import binomial, digits, mhvae, vae
from experiments.evaluate import everything
from experiments.toy2d import toy2d
from experiments.toy_models import STEPS as STEPS_2D
from vdm_jax import loss, ode, process, schedule
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.evaluation import likelihood as measure
from vdm_jax.gaussian import Gaussian
from vdm_jax.related import mixture
from vdm_jax.run import build as setup
from vdm_jax.run import cli
from vdm_jax.run.cli import UserError
from vdm_jax.run.restore import Restored
from vdm_jax.train.logging import read_metrics
from vdm_jax.train.model import BITS, Unit, unit

Base = Callable[[], ConfigDict]
Run = tuple[Base, dict[str, Any]]

_VDM = {"train.steps": 3_000}
_SHORT = {"train.steps": 1_500}
_CURVE = _SHORT | {"eval.every": 150, "eval.repeats": 8}
_CHAIN = {"hierarchy.depth": 4, "train.steps": 1_500, "hierarchy.data_size": True}
HEADS = ("x", "eps", "score", "v")
STEPS = (10, 50, 1000)  # T of the reverse variances

# The ladder itself.
RUNGS: dict[str, Run] = {
    "VAE": (vae.get_config, {}),
    "hierarchical VAE, 2 latents": (lambda: mhvae.get_config("2"), {}),
    "hierarchical VAE, 4 latents": (lambda: mhvae.get_config("4"), {}),
    "hierarchical VAE, 8 latents": (lambda: mhvae.get_config("8"), {}),
    "VDM, T = 10": (digits.get_config, _VDM | {"model.num_steps": 10}),
    "VDM, T = 100": (digits.get_config, _VDM | {"model.num_steps": 100}),
    "VDM, continuous time": (digits.get_config, _VDM),
}
# From the rung of 4 latents to the VDM of T = 3, one restriction after the other.
RESTRICTIONS: dict[str, Run] = {
    "latents of data size": (
        lambda: mhvae.get_config("4"),
        {"hierarchy.data_size": True, "model.channels": 116},
    ),
    "and a fixed linear-Gaussian encoder": (
        digits.get_config,
        _CHAIN | {"hierarchy.fixed_encoder": True},
    ),
    "and a schedule that ends at N(0, I)": (
        digits.get_config,
        _CHAIN | {"hierarchy.fixed_encoder": True, "hierarchy.ends_at_normal": True},
    ),
    "the same as a VDM, a random step at a time": (
        digits.get_config,
        {"train.steps": 3_000, "model.num_steps": 3},
    ),
}
VARIANCES: dict[str, Run] = {
    f"{kind}, T = {steps}": (
        digits.get_config,
        _SHORT | {"model.num_steps": steps, "model.reverse_var": kind},
    )
    for steps in STEPS
    for kind in ("posterior", "learned")
}
OBJECTIVES: dict[str, Run] = {
    head: (digits.get_config, _CURVE | {"model.head": head}) for head in HEADS
}
DENSITIES: dict[str, Run] = {
    "VAE": (vae.get_config, {"model.decoder": "density"}),
    "VDM, continuous time": (digits.get_config, _SHORT | {"model.decoder": "density"}),
}
BITS_RUNS: dict[str, Run] = {
    "Bernoulli VAE": (
        vae.get_config,
        {"data.name": "digits_binary", "train.steps": 2_500},
    ),
    "binomial diffusion, T = 10": (binomial.get_config, _SHORT | {"model.num_steps": 10}),
    "binomial diffusion, T = 1000": (binomial.get_config, _SHORT),
}


def ladder(argv: list[str]) -> dict[str, Any]:
    """Parse `argv`, train, measure, write the report; the numbers in it are returned."""
    workdir, out, scale = series.parse(argv, __doc__, "ladder.md and ladder/")
    at = _Workshop(workdir, setup.make_mesh(), scale)
    images = setup.load(digits.get_config())
    climbed = _rungs(at)
    (free,) = (row for row in climbed if row["name"] == "hierarchical VAE, 4 latents")
    found: dict[str, Any] = {
        "scale": scale,
        "train": len(images.train),
        "test": len(images.test),
        "histogram": _estimate(histogram(images.train, images.test, images.levels)),
        "rungs": climbed,
        "restrictions": [free | {"name": "none"}, *_group(at, "restriction", RESTRICTIONS)],
        "variances": _variances(at),
        "objectives": _objectives(at),
        "densities": _group(at, "density", DENSITIES),
        "bits": _bits(at),
        "flow": _flow(at),
        "forward": forward(),
        "priors": priors.nats_per_dim(images.test, images.levels),
        "feller": feller(),
        "points": _points(at),
    }
    found["minutes"] = at.minutes
    (at.workdir / "ladder.json").write_text(json.dumps(found, indent=1) + "\n")
    rungs.write(out, found)
    print(f"{at.minutes:.1f} minutes; written to {out / 'ladder.md'}")
    return found


@dataclasses.dataclass
class _Workshop:
    """Where the runs are, and what they took."""

    workdir: Path
    mesh: Mesh
    scale: float
    minutes: float = 0.0

    def train(self, group: str, name: str, run: Run) -> tuple[Restored, dict[str, Any]]:
        """The trained model, and its number of parameters, steps and minutes."""
        base, changes = run
        print(f"\n== {group}: {name}", flush=True)
        words = f"{group} {name}".replace(",", "").replace("=", "").replace("(", "").split()
        folder = self.workdir / "-".join(word.strip(")") for word in words)
        once = {"eval.final_repeats": 1}  # what is reported is measured afterwards
        config = series.make_config(base(), changes | once, self.scale)
        model, minutes = series.train(config, folder, self.mesh)
        self.minutes += minutes
        parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        about = {"name": name, "parameters": parameters, "steps": model.step, "minutes": minutes}
        return model, about | {"folder": str(folder)}

    def measure(self, model: Restored) -> tuple[dict[str, Any], np.ndarray]:
        """The bound's row, and its total by draw and image, in the model's unit."""
        began = time.monotonic()
        draws = series.bound(model, model.model, self.mesh)
        self.minutes += (time.monotonic() - began) / 60
        bits = np.asarray(unit(model.bound).of(draws.terms.total, model.bound.event_shape))
        return measure.of_draws(draws, model.bound), bits


def _group(at: _Workshop, group: str, runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Each run with its bound."""
    rows = []
    for name, run in runs.items():
        model, about = at.train(group, name, run)
        row, _ = at.measure(model)
        rows.append(row | about)
    return rows


def _rungs(at: _Workshop) -> list[dict[str, Any]]:
    """The ladder, each rung with its gain over the one before, image by image."""
    rows: list[dict[str, Any]] = []
    before = None
    for name, run in RUNGS.items():
        model, about = at.train("rung", name, run)
        row, bits = at.measure(model)
        gain = None if before is None else _difference(before, bits)
        rows.append(row | about | {"gain": gain})
        before = bits
    return rows


def _variances(at: _Workshop) -> list[dict[str, Any]]:
    """The bound for each reverse variance and T, and its excess over the posterior's variance."""
    rows = []
    for steps in STEPS:
        fixed, about = at.train("variance", *_named(VARIANCES, f"posterior, T = {steps}"))
        row, bits = at.measure(fixed)
        rows.append(row | about | {"num_steps": steps, "kind": "posterior", "gain": None})
        wider = fixed.model.with_fields(reverse_var="transition")
        learned, learned_about = at.train("variance", *_named(VARIANCES, f"learned, T = {steps}"))
        for kind, model, its in (
            ("transition", fixed._replace(model=wider), about),
            ("learned", learned, learned_about),
        ):
            row, other = at.measure(model)
            gain = _difference(bits, other)
            rows.append(row | its | {"num_steps": steps, "kind": kind, "gain": gain})
    return rows


def _objectives(at: _Workshop) -> list[dict[str, Any]]:
    """Four parametrisations of one network with equal seeds: the test bound during training."""
    rows = []
    for head, run in OBJECTIVES.items():
        model, about = at.train("objective", head, run)
        row, _ = at.measure(model)
        lines = read_metrics(Path(about["folder"]) / "metrics.jsonl")
        curve = [(line["step"], line["bpd"]) for line in lines if line["split"] == "test"]
        rows.append(row | about | {"curve": curve})
    return rows


def _bits(at: _Workshop) -> list[dict[str, Any]]:
    """Black-and-white digits: a Bernoulli histogram, a VAE, binomial diffusion."""
    images = setup.load(binomial.get_config())
    counted = _estimate(histogram(images.train, images.test, images.levels))
    return [counted | {"name": "Bernoulli histogram"}, *_group(at, "bits", BITS_RUNS)]


def _flow(at: _Workshop) -> list[dict[str, Any]]:
    """The last rung's VDM as a flow: the ODE's likelihood beside the bound, same images."""
    model, _ = at.train("rung", *_named(RUNGS, "VDM, continuous time"))
    solver = ode.Solver("hutchinson", rtol=1e-3, atol=1e-3)
    asked = measure.Settings(2 * series.REPEATS, ode=measure.Ode(64, solver=solver))
    began = time.monotonic()
    found = everything(model, model.on(at.mesh, 64).first(64), asked)
    at.minutes += (time.monotonic() - began) / 60
    if found["failed"]:
        raise UserError(found["failed"])
    return list(found["rows"])


def _points(at: _Workshop) -> dict[str, Any]:
    """The swirl by a VDM, and by a normalising flow trained for likelihood."""
    began, found = time.monotonic(), {}
    for kind in ("vdm", "cnf"):
        print(f"\n== swirl by {kind}", flush=True)
        steps = max(round(STEPS_2D[kind] * at.scale), 20)
        folder = at.workdir / f"points-{at.scale:g}"
        found[kind] = toy2d(
            ["toy2d", f"--workdir={folder}", f"--model={kind}", f"--steps={steps}"]
        ) | {"picture": str(folder / f"swirl-{kind}.png")}
    at.minutes += (time.monotonic() - began) / 60
    return found


# ---- numbers that need no training ----


def forward() -> list[dict[str, float]]:
    """KL(q(z_t) || N(0, 1)) in nats for Gaussian data N(0.7, 0.3^2), along the linear schedule."""
    data = Gaussian(jnp.array([0.7]), jnp.array([0.09]))
    times = jnp.linspace(0.0, 1.0, 5)
    gammas = schedule.linear(-8.0, 5.0)(times)
    rows = []
    for t, gamma in zip(times, gammas, strict=True):
        q = process.marginal_of_gaussian(data, gamma)
        kl = q.kl(Gaussian(jnp.zeros(1), jnp.ones(1)))
        rows.append({"t": float(t), "gamma": float(gamma), "kl": float(kl[0])})
    return rows


def feller() -> list[dict[str, float]]:
    """Mean KL in nats of the true q(z_s|z_t) of a mixture to its best Gaussian, by step size."""
    rows = []
    with jax.enable_x64(True):
        data = mixture.Mixture.of(jnp.array([0.3, 0.5, 0.2]), jnp.array([-1.0, 0.1, 0.9]), 0.01)
        for h in (4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
            kl = mixture.reverse_negentropy(data, -h, 0.0)
            rows.append({"step": h, "kl": float(kl)})
    return rows


def histogram(train: np.ndarray, test: np.ndarray, levels: int) -> np.ndarray:
    """Bits per dim of each test image, each pixel by its own frequencies among training images.

    Half an observation is added to each value (Jeffreys' prior): no probability is zero.
    """
    counts = np.stack([(train == level).sum(axis=0) for level in range(levels)]) + 0.5
    log_p = np.log(counts / counts.sum(axis=0))
    picked = np.take_along_axis(log_p, test.astype(np.int64), axis=0)
    nats = -picked.reshape(len(test), -1).sum(axis=1)
    return np.asarray(loss.bits_per_dim(nats, test.shape[1:]), np.float64)


def _estimate(bits: np.ndarray, unit: Unit = BITS) -> dict[str, Any]:
    """The mean over images [images], and its standard error."""
    of = evaluation.estimate(bits[None])
    return {unit.key: of.mean, "unit": unit.name, "standard_error": of.standard_error}


def _difference(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Mean of `before` - `after`, [draws, images], and its standard error between images."""
    per_image = before.mean(axis=0) - after.mean(axis=0)
    error = per_image.std(ddof=1) / np.sqrt(len(per_image))
    return {"mean": float(per_image.mean()), "standard_error": float(error)}


def _named(runs: Mapping[str, Run], name: str) -> tuple[str, Run]:
    return name, runs[name]


if __name__ == "__main__":
    cli.guard(lambda: ladder(sys.argv))
