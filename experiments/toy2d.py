"""Trains a model of points in the plane, and draws it.

    python -m experiments.toy2d [--data=swirl] [--model=vdm] [--workdir=workdirs/toy2d]

--model=vdm is a variational diffusion model; --model=cnf a continuous normalising flow trained by
maximum likelihood, the same object as the VDM's probability-flow ODE but for its training. Leaves
DATA-MODEL-STEPS-SEED.png (data, samples, learned gamma or else the loss, densities, the ODE's
trajectories from noise to data) and its numbers, .json beside it.

All numbers are in nats per point of a continuous variable: a density has no bits per dim.
"""

import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import toy_figure
from experiments.toy_models import STEPS, Fitted, train_cnf, train_vdm
from vdm_jax import files
from vdm_jax.data import points
from vdm_jax.errors import UserError
from vdm_jax.evaluation.estimate import estimate
from vdm_jax.run import build, cli

TRAIN, TEST = 100_000, 2_000
TEST_SEED = 2**32  # of no run's training points
DRAWS = 64  # of the bound for each test point
TOLERANCE = 1e-5  # of the densities that are reported
NAMES = {"truth": "the data's own density", "bound": "variational bound", "ode": "ODE density"}
MODELS = {"vdm": train_vdm, "cnf": train_cnf}


def toy2d(argv: list[str]) -> dict[str, Any]:
    """Parses `argv`, trains, measures, writes the files, and returns the numbers."""
    settings, workdir = _parse(argv)
    name = "-".join(map(str, settings.values()))
    build.make_mesh()
    began = time.monotonic()
    data = points.draw(settings["data"], TRAIN, settings["seed"])
    fitted = MODELS[settings["model"]](data, settings["steps"], settings["seed"])
    seconds = time.monotonic() - began
    found = settings | {"training_seconds": round(seconds, 1)} | _measure(fitted, settings["data"])
    _print(found)
    toy_figure.draw(workdir / f"{name}.png", fitted, found)
    files.write_json(workdir / f"{name}.json", found)
    print(f"{workdir / name}.png, .json")
    return found


def _parse(argv: list[str]) -> tuple[dict[str, Any], Path]:
    values = flags.FlagValues()
    text, number, choice = cli.definers(values)
    text("workdir", "folder for the files", "workdirs/toy2d")
    choice("data", "points", points.NAMES, "swirl")
    choice("model", "model", tuple(MODELS), "vdm")
    number("steps", f"training steps; default {STEPS['vdm']} of vdm, {STEPS['cnf']} of cnf")
    number("seed", "settles the training points and all else", 0, 0, TEST_SEED - 1)
    cli.parse_flags(values, argv, __doc__)
    settings = {name: values[name].value for name in ("data", "model", "steps", "seed")}
    settings["steps"] = settings["steps"] or STEPS[values.model]
    return settings, build.make_workdir(Path(values.workdir))


def _measure(fitted: Fitted, name: str) -> dict[str, Any]:
    """Returns the densities of the test points: the data's own, the model's, and its bound."""
    x = points.draw(name, TEST, TEST_SEED)
    truth = -points.log_prob(name, x)
    ode = -np.asarray(fitted.log_prob(jnp.asarray(x), TOLERANCE), np.float64)
    if not np.isfinite(ode).all():
        raise UserError("the ODE of this model can't be solved: it needs more training steps")
    found = {"test_points": TEST, "entropy": points.entropy(name), "truth": mean(truth)}
    found |= {"ode": mean(ode) | {"excess": mean(ode - truth)}, "bound": None}
    if fitted.bound is not None:
        keys = jax.random.split(jax.random.key(TEST_SEED - 1), DRAWS)
        draws = [np.asarray(fitted.bound(key, jnp.asarray(x)), np.float64) for key in keys]
        nats = np.mean(draws, axis=0)
        found["bound"] = mean(nats) | {"excess": mean(nats - truth)}
    return found


def mean(values: np.ndarray, name: str = "nats") -> dict[str, Any]:
    """Returns the mean of one number a point, or an image, and its standard error."""
    of = estimate(values[None])
    return {name: of.mean, "standard_error": of.standard_error}


def _print(found: dict[str, Any]) -> None:
    took = f"{found['steps']} steps in {found['training_seconds']:.0f} s"
    of = f"{found['test_points']} test points; entropy of the data {found['entropy']:.4f}"
    print(f"\n{found['data']}, {found['model']}: {took}. Nats per point, {of}.")
    for name, row in ((name, found[key]) for key, name in NAMES.items() if found[key]):
        text = f"{name:23} {row['nats']:8.4f} ± {row['standard_error']:.4f}"
        if over := row.get("excess"):
            text += f"   {over['nats']:+.4f} ± {over['standard_error']:.4f} from the data's"
        print(text)


if __name__ == "__main__":
    cli.guard(lambda: toy2d(sys.argv))
