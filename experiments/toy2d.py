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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

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

# Of the figure.
SHOWN = 3000  # points of a panel
REACH = 1.25  # the panels show [-REACH, REACH]^2
GRID = 80  # cells of the density, to a side; the checkerboard's edges are edges of them
PATHS = 60


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
    draw(workdir / f"{name}.png", fitted, found)
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
        raise UserError("the ODE of this model can't be solved; give it more --steps, or a --seed")
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


def draw(path: Path, fitted: Fitted, found: Mapping[str, Any]) -> None:
    """Draws six panels: data and samples, their densities, schedule (or loss), trajectories."""
    name = found["data"]
    how = "ancestral, 200 steps" if found["model"] == "vdm" else "by the ODE"
    figure = Figure(figsize=(13, 9), layout="constrained")
    (data, samples, middle), (truth, density, paths) = figure.subplots(2, 3)
    key_samples, key_paths = jax.random.split(jax.random.key(found["seed"]))
    _scatter(data, points.draw(name, SHOWN, found["seed"]), f"data: {name}")
    _scatter(samples, np.asarray(fitted.sample(key_samples, SHOWN)), f"samples ({how})")
    _curve(middle, fitted, found["entropy"])
    edges = np.linspace(-REACH, REACH, GRID + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    x = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    known = np.exp(points.log_prob(name, x))
    learned = np.exp(np.asarray(fitted.log_prob(jnp.asarray(x, jnp.float32), 1e-3), np.float64))
    top = float(known.max())  # one scale of colours for data and model
    _density(truth, edges, known, top, "density of the data")
    _density(density, edges, learned, top, "density of the model, by the ODE")
    _paths(paths, np.asarray(fitted.paths(jax.random.normal(key_paths, (PATHS, 2)))))
    names = {"bound": "bound", "ode": "ODE", "truth": "the data's own density"}
    rows = [(words, row) for key, words in names.items() if (row := found[key])]
    nats = ", ".join(f"{n} {row['nats']:.3f} ± {row['standard_error']:.3f}" for n, row in rows)
    kind = "VDM" if found["model"] == "vdm" else "normalising flow"
    figure.suptitle(f"{kind}, {found['steps']} steps.  Test nats per point: {nats}")
    with files.whole(path) as file:
        figure.savefig(file, dpi=110)


def _square(axes: Axes, title: str, reach: float = REACH) -> None:
    ticks = np.arange(-int(reach), int(reach) + 1)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title)
    axes.set(xticks=ticks, yticks=ticks)


def _scatter(axes: Axes, x: np.ndarray, title: str) -> None:
    axes.scatter(x[:, 0], x[:, 1], s=2, alpha=0.4, linewidths=0, color="tab:blue")
    _square(axes, title)


def _curve(axes: Axes, fitted: Fitted, entropy: float) -> None:
    """Draws the learned schedule, or the loss of a model without one."""
    if fitted.gamma is not None:
        t = np.linspace(0.0, 1.0, 200)
        gamma = np.asarray(fitted.gamma(jnp.asarray(t, jnp.float32)))
        axes.plot(t, gamma, color="tab:green", label="learned")
        axes.plot(t[[0, -1]], gamma[[0, -1]], color="grey", linestyle=":", label="line (the start)")
        axes.set(title=r"learned $\gamma(t) = -\log\,\mathrm{SNR}$", xlabel="t", box_aspect=1)
    else:
        axes.plot(*zip(*fitted.losses, strict=True), color="tab:green", label="training loss")
        axes.axhline(entropy, color="grey", linestyle=":", label="entropy of the data")
        axes.set(title="-log p(x), nats", xlabel="step", box_aspect=1)
    axes.legend()
    axes.grid(alpha=0.3)


def _density(axes: Axes, edges: np.ndarray, density: np.ndarray, top: float, title: str) -> None:
    grid = density.reshape(len(edges) - 1, -1)
    axes.pcolormesh(edges, edges, grid, vmin=0.0, vmax=top, rasterized=True)
    _square(axes, f"{title} (sum {density.sum() * (edges[1] - edges[0]) ** 2:.3f})")


def _paths(axes: Axes, paths: np.ndarray) -> None:
    lines = LineCollection(list(paths.swapaxes(0, 1)), linewidths=0.7, alpha=0.6, color="grey")
    axes.add_collection(lines)
    for x, color, label in ((paths[0], "tab:orange", "t = 1"), (paths[-1], "tab:blue", "t = 0")):
        axes.scatter(x[:, 0], x[:, 1], s=8, color=color, label=label, zorder=2)
    _square(axes, "reverse trajectories (the ODE's)", 2.6)
    axes.legend(loc="upper right")


if __name__ == "__main__":
    cli.guard(lambda: toy2d(sys.argv))
