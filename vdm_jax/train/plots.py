"""The pictures of a run: grids of samples, and the loss curve."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vdm_jax.train.model import unit_of


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
    grid[:n, :height, :width] = np.rint(np.asarray(images, np.float64) * scale).astype(np.uint8)
    grid = grid.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return grid.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]


def write_image(path: Path, image: np.ndarray, min_size: int = 256) -> None:
    """Writes uint8 [height, width, 1 or 3] as PNG, enlarged by a whole factor if it is tiny."""
    factor = max(1, -(-min_size // max(image.shape[:2])))
    enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(enlarged[..., 0] if enlarged.shape[-1] == 1 else enlarged).save(path)


def plot_losses(metrics: list[dict], path: Path) -> None:
    """Plots the bound against the step, one curve a split, with standard errors where known."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    values = []
    unit = unit_of(set().union(*metrics))
    for split in dict.fromkeys(line["split"] for line in metrics if unit.key in line):
        lines = [line for line in metrics if line["split"] == split and unit.key in line]
        steps, bound = [line["step"] for line in lines], [line[unit.key] for line in lines]
        errors = [line.get(f"{unit.key}_standard_error", 0.0) for line in lines]
        values += bound
        style = "-" if split == "train" else "o-"
        axes.errorbar(steps, bound, errors, fmt=style, markersize=4, linewidth=1, label=split)
    if values:
        # The first steps are far above the rest and would flatten everything else.
        low, high = min(values), float(np.quantile(values, 0.95))
        margin = 0.1 * (high - low) + 0.01
        axes.set_ylim(low - margin, high + margin)
        axes.legend()
    axes.set_xlabel("step")
    axes.set_ylabel(unit.name)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
