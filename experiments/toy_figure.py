"""The figure of `experiments.toy2d`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from experiments.toy_models import Fitted
from vdm_jax.data import points
from vdm_jax.train.plots import figure

SHOWN = 3000  # points of a panel
REACH = 1.25  # the panels show [-REACH, REACH]^2
GRID = 80  # cells of the density, to a side; the checkerboard's edges are edges of them
PATHS = 60


def draw(path: Path, fitted: Fitted, found: Mapping[str, Any]) -> None:
    """Draws six panels: data and samples, their densities, schedule (or loss), trajectories."""
    name = found["data"]
    how = "ancestral, 200 steps" if found["model"] == "vdm" else "by the ODE"
    key_samples, key_paths = jax.random.split(jax.random.key(found["seed"]))
    edges = np.linspace(-REACH, REACH, GRID + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    x = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    known = np.exp(points.log_prob(name, x))
    learned = np.exp(np.asarray(fitted.log_prob(jnp.asarray(x, jnp.float32), 1e-3), np.float64))
    top = float(known.max())  # one scale of colours for data and model
    with figure(path, _title(found), (13, 9), (2, 3), share_x=False) as axes:
        data, samples, middle, truth, density, paths = axes
        _scatter(data, points.draw(name, SHOWN, found["seed"]), f"data: {name}")
        _scatter(samples, np.asarray(fitted.sample(key_samples, SHOWN)), f"samples ({how})")
        _curve(middle, fitted, found["entropy"])
        _density(truth, edges, known, top, "density of the data")
        _density(density, edges, learned, top, "density of the model")
        _paths(paths, np.asarray(fitted.paths(jax.random.normal(key_paths, (PATHS, 2)))))


def _title(found: Mapping[str, Any]) -> str:
    names = {"bound": "bound", "ode": "ODE", "truth": "the data's own density"}
    rows = [(words, row) for key, words in names.items() if (row := found[key])]
    nats = ", ".join(f"{n} {row['nats']:.3f} ± {row['standard_error']:.3f}" for n, row in rows)
    kind = "VDM" if found["model"] == "vdm" else "normalising flow"
    return f"{kind}, {found['steps']} steps. Nats per test point:\n{nats}"


def _square(axes: Axes, title: str, reach: float = REACH) -> None:
    ticks = np.arange(-int(reach), int(reach) + 1)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title)
    axes.set(xticks=ticks, yticks=ticks)


def _scatter(axes: Axes, x: np.ndarray, title: str) -> None:
    axes.scatter(x[:, 0], x[:, 1], s=2, alpha=0.4, linewidths=0, color="C0")
    _square(axes, title)


def _curve(axes: Axes, fitted: Fitted, entropy: float) -> None:
    """Draws the learned schedule, or the loss of a model without one."""
    if fitted.gamma is not None:
        t = np.linspace(0.0, 1.0, 200)
        gamma = np.asarray(fitted.gamma(jnp.asarray(t, jnp.float32)))
        axes.plot(t, gamma, color="C2", label="learned")
        axes.plot(t[[0, -1]], gamma[[0, -1]], color="grey", linestyle=":", label="line (the start)")
        axes.set(title=r"learned $\gamma(t) = -\log\,\mathrm{SNR}$", xlabel="t", box_aspect=1)
    else:
        axes.plot(*zip(*fitted.losses, strict=True), color="C2", label="training loss")
        axes.axhline(entropy, color="grey", linestyle=":", label="entropy of the data")
        axes.set(title="-log p(x), nats", xlabel="step", box_aspect=1)


def _density(axes: Axes, edges: np.ndarray, density: np.ndarray, top: float, title: str) -> None:
    grid = density.reshape(len(edges) - 1, -1)
    axes.pcolormesh(edges, edges, grid, vmin=0.0, vmax=top, rasterized=True)
    _square(axes, f"{title} (sum {density.sum() * (edges[1] - edges[0]) ** 2:.3f})")


def _paths(axes: Axes, paths: np.ndarray) -> None:
    lines = LineCollection(list(paths.swapaxes(0, 1)), linewidths=0.7, alpha=0.6, color="grey")
    axes.add_collection(lines)
    for x, color, label in ((paths[0], "C1", "t = 1"), (paths[-1], "C0", "t = 0")):
        axes.scatter(x[:, 0], x[:, 1], s=8, color=color, label=label, zorder=2)
    _square(axes, "reverse trajectories (the ODE's)", 2.6)
    axes.legend(loc="upper right")
