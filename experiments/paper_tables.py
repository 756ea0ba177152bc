"""The paper's results at small scale, on digits: the tables and plots of docs/results.md.

    python -m experiments.paper_tables --workdir=DIR [--out=docs] [--scale=1.0]

Trains eight small models on digits, below DIR, and measures on them what the paper's tables and
figures show on CIFAR-10. A run that is there already is not trained again. Leaves all numbers in
DIR/results.json. --scale shortens or lengthens every training, for a copy of the page in another
--out.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import paper_report, trainings
from experiments.configs import digits
from vdm_jax import bounds, files, loss, pixels, schedule
from vdm_jax.evaluation import likelihood
from vdm_jax.evaluation.likelihood import Row
from vdm_jax.evaluation.subject import Subject
from vdm_jax.run import build, cli
from vdm_jax.train.model import Batch, Model, Params
from vdm_jax.types import Gamma, Key
from vdm_jax.vdm import VDM

SWEEP = (10, 100, 250, 500, 1000, 10000, None)  # numbers of steps T that a model is evaluated with
FORMS = (4, 16, 64, 256, 1024)  # T of the two forms of the bound
NETWORKS = ("eps", "eps, Fourier features", "x", "v")  # what the network predicts, and its input
ENDS = (-13.3, 5.0)  # the paper's end points of gamma, for the table of variances

# What differs from configs/digits.py.
RUNS: dict[str, dict[str, Any]] = {
    "main": {"train.steps": 5_000},
    "T=10": {"train.steps": 5_000, "model.num_steps": 10},
    "T=100": {"train.steps": 5_000, "model.num_steps": 100},
    "learned": {
        "train.steps": 6_000, "train.batch_size": 64, "optimizer.b2": 0.999,
        "model.gamma": "monotone", "model.gamma_objective": "variance",
        "model.learn_end_points": False, "model.gamma_min": ENDS[0], "model.gamma_max": ENDS[1],
    },
    **{head: {"train.steps": 3_000, "model.head": head} for head in ("eps", "x", "v")},
    "eps, Fourier features": {
        "train.steps": 3_000, "model.head": "eps", "model.fourier_features": True,
    },
}  # fmt: skip


def reproduce(argv: list[str]) -> dict[str, Any]:
    """Parses `argv`, trains, measures, and puts the numbers, which are returned, into the page."""
    workdir, page, scale = trainings.parse(argv, __doc__, "results.md", paper_report.TABLES)
    mesh = build.make_mesh()
    models, minutes = {}, 0.0
    for name, changes in RUNS.items():
        print(f"\n== {name}", flush=True)
        config = trainings.make_config(digits.get_config(), changes, scale)
        folder = workdir / name.replace(" ", "-").replace(",", "")
        models[name], took = trainings.train(config, folder, mesh)
        minutes += took
    print("\n== measuring", flush=True)
    found = {
        "scale": scale, "minutes": minutes, "sweep": _sweep(models),
        "variance": _variance(models["learned"]),
        "networks": [trainings.bound(models[name])[0] | {"network": name} for name in NETWORKS],
        "forms": _forms(models["main"]),
        "likelihoods": trainings.likelihoods(
            models["main"], num_steps=(None, 20), chains=32, chain_steps=20,
            dequantizations=pixels.DEQUANTIZATIONS,
        ),
    }  # fmt: skip
    files.write_json(workdir / "results.json", found)
    paper_report.write(page, found)
    print(f"{minutes:.1f} minutes of training; written to {page}")
    return found


def _sweep(models: dict[str, Subject]) -> list[Row]:
    """Returns the paper's table 2: trained with one T, evaluated with another."""
    evaluated = {"T=10": (10,), "T=100": (100,), "main": SWEEP}
    return [
        trainings.bound(models[name], num_steps=num_steps)[0]
        | {"trained": models[name].vdm.num_steps}
        for name in evaluated
        for num_steps in evaluated[name]
    ]


def _variance(trained: Subject) -> list[Row]:
    """Returns the paper's figure 4b: four schedules between the same end points, one network."""
    schedules: dict[str, dict[str, Gamma]] = {
        "learned": {},
        "linear log-SNR": {"gamma": schedule.linear(*ENDS)},
        "cosine": {"gamma": schedule.cosine(*ENDS)},
        "beta-linear": {"gamma": schedule.beta_linear(*ENDS)},
    }
    rows = []
    for name, gamma in schedules.items():
        row, draws, of = trainings.bound(trained, 4 * trainings.REPEATS, **gamma)
        variance = float(np.var(loss.bits_per_dim(draws.terms.total, of.vdm.event_shape)))
        profile = likelihood.loss_profile(draws, of.vdm)
        rows.append(row | {"schedule": name, "variance": variance, "profile": profile})
    return rows


def _forms(trained: Subject) -> list[Row]:
    """Returns mean and variance of a draw of Luo's two forms of one bound, for several T."""
    rows = []
    for num_steps in FORMS:
        row: Row = {"num_steps": num_steps}
        for form, function in (("matching", VDM.elbo), ("consistency", bounds.consistency)):
            nats = partial(_nats, trained.at(num_steps).model, function)
            bits, _ = likelihood.per_image(nats, trained, jax.random.key(0), 32)
            error = bits.std(ddof=1) / np.sqrt(bits.size)
            row[form] = {"mean": bits.mean(), "error": error, "variance": bits.var(ddof=1)}
        rows.append(row)
    return rows


def _nats(
    model: Model, form: Callable[..., loss.ElboTerms], params: Params, batch: Batch, key: Key
) -> tuple[jax.Array, jax.Array]:
    """Returns a draw of one form of the bound [batch] in nats, and 0."""
    vdm = model.bind(params, batch["conditioning"])
    return form(vdm, key, batch["images"]).total, jnp.zeros(())


if __name__ == "__main__":
    cli.guard(lambda: reproduce(sys.argv))
