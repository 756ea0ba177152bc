"""The pictures of a run: grids of samples, and the loss curve."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from vdm_jax import files
from vdm_jax.train.model import unit_of

WIDTH = 512  # of a grid, at least: it is looked at
STYLE = Path(__file__).with_name("vdm_jax.mplstyle")


def image_grid(images: np.ndarray, levels: int) -> np.ndarray:
    """Returns integer images [n, height, width, channels] as one picture, uint8 [H, W, 1 or 3]."""
    n, height, width, channels = images.shape
    if channels not in (1, 3):  # in grey, one below the other
        images = images.transpose(0, 3, 1, 2).reshape(n, channels * height, width, 1)
        height, channels = channels * height, 1
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    grid = np.zeros((rows * columns, height + 1, width + 1, channels), np.uint8)
    scale = 255.0 / max(levels - 1, 1)
    found = np.maximum(images, 0)  # what isn't a number, -1, is black
    grid[:n, :height, :width] = np.rint(np.asarray(found, np.float64) * scale).astype(np.uint8)
    grid = grid.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return grid.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes uint8 [height, width, 1 or 3] as PNG, `WIDTH` wide or more by a whole factor."""
    factor = max(1, -(-WIDTH // image.shape[1]))
    enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as file:
        Image.fromarray(enlarged[..., 0] if enlarged.shape[-1] == 1 else enlarged).save(file, "PNG")


@contextlib.contextmanager
def figure(
    path: Path,
    title: str,
    size: tuple[float, float] = (7.0, 4.5),
    shape: tuple[int, int] = (1, 1),
    share_x: bool = True,
) -> Iterator[list[Axes]]:
    """Gives the axes of a figure of rows and columns, a column's with one x-axis if `share_x`.

    Saves it in the style of all plots, with the title and a legend in the first axes with labels.
    """
    with style.context(STYLE):
        drawn = Figure(figsize=size)
        axes = list(drawn.subplots(*shape, sharex="col" if share_x else "none", squeeze=False).flat)
        yield axes
        drawn.suptitle(title)
        for one in [one for one in axes if one.get_legend_handles_labels()[1]][:1]:
            one.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(path) as file:
            drawn.savefig(file)


def plot_losses(metrics: list[dict], path: Path, last_step: int) -> None:
    """Plots the bound against the step, with standard errors where known.

    A curve is of the parameters or of their average; the evaluation at `last_step`, which has other
    draws than those before it, stands apart.
    """
    unit = unit_of(set().union(*metrics))
    curves: dict[tuple[str, str], list[dict]] = {}
    for line in (line for line in metrics if unit.key in line):
        kind = f"{line['split']} images, average of the parameters (EMA)", "o-"
        if line["split"] == "train":
            kind = "training batches, parameters", "-"
        elif line["step"] == last_step:
            kind = f"{line['split']} images, EMA, final evaluation", "k*"
        curves.setdefault(kind, []).append(line)
    with figure(path, "Variational bound during training", (7, 5)) as (axes,):
        for (label, style), lines in curves.items():
            steps, bound = [line["step"] for line in lines], [line[unit.key] for line in lines]
            errors = [line.get(f"{unit.key}_standard_error", 0.0) for line in lines]
            look: dict[str, Any] = {"markersize": 10 if style == "k*" else 4, "linewidth": 1}
            axes.errorbar(steps, bound, errors, fmt=style, label=label, **look)
        axes.set(xlabel="step", ylabel=unit.name)
        if curves:
            # The first steps are far above the rest and would flatten everything else.
            values = [line[unit.key] for lines in curves.values() for line in lines]
            low, high = min(values), float(np.quantile(values, 0.95))
            margin = 0.1 * (high - low) + 0.01
            axes.set_ylim(low - margin, high + margin)
