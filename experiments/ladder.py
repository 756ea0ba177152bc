"""The ladder from the VAE to the flow, on digits: the tables and plots of docs/ladder.md.

    python -m experiments.ladder --workdir=DIR [--out=docs] [--scale=1.0]

Trains a VAE, hierarchical VAEs, VDMs and what lies between them, below DIR, each with about as many
parameters and for about as long, and evaluates them on the same test images. A run that is there
already is not trained again. Leaves all numbers in DIR/ladder.json. --scale shortens or lengthens
every training, for a copy of the page in another --out.
"""

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from experiments import ladder_tables, trainings
from experiments.configs import binomial, digits, mhvae, vae
from experiments.ladder_tables import PREDICTIONS
from experiments.toy2d import mean, toy2d
from experiments.toy_models import STEPS as STEPS_2D
from experiments.trainings import Study
from vdm_jax import files, loss, pixels, process, schedule
from vdm_jax.data import ImageData
from vdm_jax.evaluation.likelihood import Row
from vdm_jax.evaluation.subject import Subject
from vdm_jax.gaussian import Gaussian
from vdm_jax.related import mixture
from vdm_jax.run import build, cli
from vdm_jax.train.logging import read_metrics
from vdm_jax.train.model import unit
from vdm_jax.types import Gamma

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
    study = trainings.parse(argv, __doc__, "ladder.md", ladder_tables.TABLES)
    grey, binary = build.load(digits.get_config()), build.load(binomial.get_config())
    rungs = _rungs(study)
    found: dict[str, Any] = {
        "scale": study.scale,
        "histogram": _histogram_row(grey),
        "rungs": rungs,
        "restrictions": [
            *(row | {"name": "none"} for row in rungs if row["name"] == FOUR),
            *(_row(study, "restriction", name) for name in RUNS["restriction"]),
        ],
        "variances": [row for steps in STEPS for row in _variances(study, steps)],
        "objectives": [_objective(study, name) for name in RUNS["objective"]],
        "densities": [_row(study, "density", name) for name in RUNS["density"]],
        "bits": [
            _histogram_row(binary) | {"name": "Bernoulli histogram"},
            *(_row(study, "bits", name) for name in RUNS["bits"]),
        ],
        "flow": trainings.likelihoods(study.trained(f"rung {LAST}")),  # of the same VDM
        "forward": forgetting(),
        "priors": prior_nats_per_dim(grey.test, grey.levels),
        "reverse": reverse_step(),
        "points": _points(study),
        "minutes": study.minutes,
    }
    study.report(found, ladder_tables.TABLES, ladder_tables.PLOTS)
    return found


def _train(study: Study, group: str, name: str) -> tuple[Subject, Row]:
    """Returns the trained model, and its name, number of parameters, steps and minutes."""
    base, changes = RUNS[group][name]
    model, about = study.train(f"{group} {name}", base(), changes)
    return model, {"name": name} | about


def _row(study: Study, group: str, name: str) -> Row:
    """Returns the row of one run: its bound, parameters, steps and minutes."""
    model, about = _train(study, group, name)
    return _bound(model)[0] | about


def _bound(model: Subject, **fields: Any) -> tuple[Row, np.ndarray]:
    """Returns the bound's row, and its total by draw and image, in the model's unit."""
    row, draws, model = trainings.bound(model, **fields)
    return row, np.asarray(unit(model.bound).of(draws.terms.total, model.bound.event_shape))


def _rungs(study: Study) -> list[Row]:
    """Returns the ladder's rows, each with its gain over the one before, image by image."""
    rows: list[Row] = []
    before = None
    for name in RUNS["rung"]:
        model, about = _train(study, "rung", name)
        row, bits = _bound(model)
        gain = None if before is None else difference(before, bits)
        rows.append(row | about | {"gain": gain})
        before = bits
    return rows


def _variances(study: Study, steps: int) -> list[Row]:
    """Returns the bounds of three reverse variances, and their gains over the posterior's."""
    fixed, about = _train(study, "variance", f"posterior, T = {steps}")
    learned, learned_about = _train(study, "variance", f"learned, T = {steps}")
    row, base = _bound(fixed)
    rows = [row | about | {"num_steps": steps, "kind": "posterior", "gain": None}]
    for kind, model, of in (("transition", fixed, about), ("learned", learned, learned_about)):
        row, bits = _bound(model, reverse_var=kind)
        gain = difference(base, bits)
        rows.append(row | of | {"num_steps": steps, "kind": kind, "gain": gain})
    return rows


def _objective(study: Study, name: str) -> Row:
    """Returns a parameterization's row, with its test bound during training."""
    row = _row(study, "objective", name)
    lines = read_metrics(study.folder(f"objective {name}") / "metrics.jsonl")
    curve = [(line["step"], line["bpd"]) for line in lines if line["split"] == "test"]
    return row | {"curve": curve}


def _points(study: Study) -> dict[str, Any]:
    found, folder = {}, study.workdir / "points"
    for kind in ("vdm", "cnf"):
        print(f"\n== swirl by {kind}", flush=True)
        steps = max(round(STEPS_2D[kind] * study.scale), 20)
        result = folder / f"swirl-{kind}-{steps}-0.json"
        if not result.exists():
            toy2d(["toy2d", f"--workdir={folder}", f"--model={kind}", f"--steps={steps}"])
        found[kind] = json.loads(result.read_text(encoding="utf-8"))
        drawn = result.with_suffix(".png").read_bytes()
        files.write(study.page.with_suffix("") / f"swirl-{kind}.png", drawn)
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


# ---- the numbers that no network is trained for ----

SCHEDULES: dict[str, Gamma] = {
    "VDM, linear from -13.3 to 5": schedule.linear(-13.3, 5.0),
    "cosine from -13.3 to 5": schedule.cosine(-13.3, 5.0),
    "Nichol & Dhariwal, cosine, T = 1000": schedule.from_betas(schedule.cosine_betas(1000)),
    "Nichol & Dhariwal, cosine, T = 4000": schedule.from_betas(schedule.cosine_betas(4000)),
    "DDPM, T = 1000": schedule.from_betas(schedule.ddpm_betas()),
    # Song et al.'s integral of beta over [0, 1], of beta_min = 0.1 and beta_max = 20, is 10.05.
    "VP-SDE": schedule.beta_linear(-13.3, math.log(math.expm1(10.05))),
}


def prior_nats_per_dim(images: ArrayLike, levels: int) -> dict[str, float]:
    """Returns the prior matching term KL(q(z_1|x) || N(0, I)) in nats per dimension, by schedule.

    It is the mean over images [n, *event], integers in [0, levels).
    """
    x = pixels.encode(jnp.asarray(images), levels)
    ends = {name: gamma(jnp.ones(1))[0] for name, gamma in SCHEDULES.items()}
    return {name: float(jnp.mean(loss.prior(x, end))) / x[0].size for name, end in ends.items()}


def forgetting() -> list[dict[str, float]]:
    """Returns KL(q(z_t) || N(0, 1)) in nats of data N(0.7, 0.3^2) along a linear schedule."""
    data = Gaussian(jnp.array([0.7]), jnp.array([0.09]))
    times = jnp.linspace(0.0, 1.0, 5)
    rows = []
    for t, gamma in zip(times, schedule.linear(-8.0, 5.0)(times), strict=True):
        kl = process.marginal_of_gaussian(data, gamma).kl(Gaussian(jnp.zeros(1), jnp.ones(1)))
        rows.append({"t": float(t), "gamma": float(gamma), "kl": float(kl[0])})
    return rows


def reverse_step() -> list[dict[str, float]]:
    """Returns the mean KL in nats of a mixture's q(z_s|z_t) to its best Gaussian, by step size."""
    steps = (4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
    with jax.enable_x64(True):
        data = mixture.Mixture.of(jnp.array([0.3, 0.5, 0.2]), jnp.array([-1.0, 0.1, 0.9]), 0.01)
        return [{"step": h, "kl": float(mixture.reverse_negentropy(data, -h, 0.0))} for h in steps]


if __name__ == "__main__":
    cli.guard(lambda: ladder(sys.argv))
