"""The offline part of the paper's results, at small scale: docs/results.md and its plots.

    python -m experiments.reproduce --workdir=DIR [--out=docs] [--scale=1.0]

Trains eight small models on digits, below DIR, and measures on them what the paper's tables and
figures show on CIFAR-10. A run that is there already is not trained again. --scale shortens or
lengthens every training; docs/results.md is made with 1.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import series, study
from experiments.configs import digits
from experiments.evaluate import everything
from vdm_jax import bounds, loss, ode, pixels, schedule
from vdm_jax.evaluation import likelihood as measure
from vdm_jax.run import build as setup
from vdm_jax.run import cli
from vdm_jax.run.cli import UserError
from vdm_jax.run.restore import Restored
from vdm_jax.train.model import Batch
from vdm_jax.types import Gamma, Key
from vdm_jax.vdm import VDM

SWEEP = (10, 100, 250, 500, 1000, 10000, None)
FORMS = (4, 16, 64, 256, 1024)
GAMMA_MIN, GAMMA_MAX = -13.3, 5.0  # the paper's end points, for the table of variances

# What differs from configs/digits.py.
RUNS: dict[str, dict[str, Any]] = {
    "main": {"train.steps": 5_000},
    "T=10": {"train.steps": 5_000, "model.num_steps": 10},
    "T=100": {"train.steps": 5_000, "model.num_steps": 100},
    "learned": {
        "train.steps": 6_000,
        "train.batch_size": 64,
        "optimizer.b2": 0.999,
        "model.gamma": "monotone",
        "model.gamma_objective": "variance",
        "model.learn_end_points": False,
        "model.gamma_min": GAMMA_MIN,
        "model.gamma_max": GAMMA_MAX,
    },
    "eps": {"train.steps": 3_000, "model.head": "eps"},
    "eps, Fourier features": {
        "train.steps": 3_000,
        "model.head": "eps",
        "model.fourier_features": True,
    },
    "x": {"train.steps": 3_000, "model.head": "x"},
    "v": {"train.steps": 3_000, "model.head": "v"},
}


def reproduce(argv: list[str]) -> dict[str, Any]:
    """Parse `argv`, train, measure, write the report; the numbers in it are returned."""
    workdir, out, scale = series.parse(argv, __doc__, "results.md and results/")
    mesh = setup.make_mesh()
    models, minutes = {}, 0.0
    for name, changes in RUNS.items():
        folder = workdir / name.replace(" ", "-").replace(",", "")
        print(f"\n== {name}", flush=True)
        models[name], took = series.train(make_config(changes, scale), folder, mesh)
        minutes += took
    began = time.monotonic()
    print("\n== measuring", flush=True)
    found = _measure(models, mesh)
    found["minutes"] = minutes + (time.monotonic() - began) / 60
    found["scale"] = scale
    (workdir / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    study.write(out, found)
    print(f"{found['minutes']:.1f} minutes; written to {out / 'results.md'}")
    return found


def make_config(changes: dict[str, Any], scale: float = 1.0) -> ConfigDict:
    """The configuration of digits with `changes`, and `scale` times the steps."""
    return series.make_config(digits.get_config(), changes, scale)


def _measure(models: dict[str, Restored], mesh: Mesh) -> dict[str, Any]:
    def say(name: str, part: Callable[[], Any]) -> Any:
        began = time.monotonic()
        result = part()
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        return result

    main = models["main"]
    return {
        "images": len(main.images.test),
        "steps": {name: model.step for name, model in models.items()},
        "sweep": say("T sweep", lambda: _sweep(models, mesh)),
        "variance": say("variance", lambda: _variance(models["learned"], mesh)),
        "networks": say("networks", lambda: _networks(models, mesh)),
        "forms": say("two forms", lambda: _forms(main, mesh)),
        "likelihoods": say("likelihoods", lambda: _likelihoods(main, mesh)),
    }


def _sweep(models: dict[str, Restored], mesh: Mesh) -> list[dict[str, Any]]:
    """The paper's table 2: trained with one T, evaluated with another."""
    rows = []
    for name, evaluated in (("T=10", (10,)), ("T=100", (100,)), ("main", SWEEP)):
        trained = models[name]
        for num_steps in evaluated:
            model = trained.model.with_fields(num_steps=num_steps)
            draws = series.bound(trained, model, mesh)
            row = measure.of_draws(draws, model.bind(trained.params))
            rows.append(row | {"trained": trained.vdm.num_steps})
    return rows


def _variance(trained: Restored, mesh: Mesh) -> list[dict[str, Any]]:
    """The paper's figure 4b: four schedules between the same end points, one network."""
    ends = (GAMMA_MIN, GAMMA_MAX)
    fixed: dict[str, Gamma | None] = {
        "learned": None,
        "linear log-SNR": schedule.linear(*ends),
        "cosine": schedule.cosine(*ends),
        "beta-linear": schedule.beta_linear(*ends),
    }
    rows = []
    for name, gamma in fixed.items():
        model = trained.model if gamma is None else trained.model.with_fields(gamma=gamma)
        draws = series.bound(trained, model, mesh, 4 * series.REPEATS)
        of_it = trained._replace(model=model)
        row = measure.of_draws(draws, of_it.vdm)
        rows.append(
            row
            | {
                "schedule": name,
                "variance": measure.variance(draws, of_it.vdm.event_shape),
                "profile": measure.profile(draws, of_it.vdm),
            }
        )
    return rows


def _networks(models: dict[str, Restored], mesh: Mesh) -> list[dict[str, Any]]:
    """What the network predicts, and Fourier features: the bound in continuous time."""
    rows = []
    for name in ("eps", "eps, Fourier features", "x", "v"):
        trained = models[name]
        draws = series.bound(trained, trained.model, mesh)
        rows.append(measure.of_draws(draws, trained.vdm) | {"network": name})
    return rows


def _forms(trained: Restored, mesh: Mesh) -> list[dict[str, Any]]:
    """Luo's two forms of one bound: mean and variance of a draw, for several T."""
    rows = []
    for num_steps in FORMS:
        row: dict[str, Any] = {"num_steps": num_steps}
        for form, function in (("matching", VDM.elbo), ("consistency", bounds.consistency)):

            def nats(
                params: Any,
                batch: Batch,
                key: Key,
                num_steps: int = num_steps,
                function: Callable[..., loss.ElboTerms] = function,
            ) -> tuple[jax.Array, jax.Array]:
                vdm = trained.model.bind(params, batch["conditioning"])
                terms = function(vdm._replace(num_steps=num_steps), key, batch["images"])
                return terms.total, jax.numpy.zeros(())

            bits, _ = measure.per_image(nats, trained.on(mesh), jax.random.key(0), 32)
            error = bits.std(ddof=1) / np.sqrt(bits.size)
            row[form] = {"mean": bits.mean(), "error": error, "variance": bits.var(ddof=1)}
        rows.append(row)
    return rows


def _likelihoods(trained: Restored, mesh: Mesh) -> dict[str, Any]:
    """ODE and bound side by side, and the importance-weighted bound, by `experiments.evaluate`."""
    solver = ode.Solver("hutchinson", rtol=1e-3, atol=1e-3)
    asked = measure.Settings(
        2 * series.REPEATS, (None, 20), chains=measure.Chains(32, 20),
        ode=measure.Ode(64, pixels.DEQUANTIZATIONS, solver=solver),
    )  # fmt: skip
    found = everything(trained, trained.on(mesh, 64).first(64), asked)
    if found["failed"]:
        raise UserError(found["failed"])
    return found


if __name__ == "__main__":
    cli.guard(lambda: reproduce(sys.argv))
