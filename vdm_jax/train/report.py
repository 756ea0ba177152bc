"""What a run leaves for people: metric files, pictures, and lines on the screen."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from vdm_jax import files
from vdm_jax.train.model import unit_of

__all__ = ["MetricsLog", "image_grid", "plot_losses", "read_metrics", "write_image"]

matplotlib.use("Agg", force=False)


class MetricsLog:
    """Scalars by step, to `metrics.jsonl` and to TensorBoard files in `tensorboard/`.

    A run that goes on at `first_step` drops the lines of later steps, which it will write again.
    Of several processes the first one writes; what the others are told they only remember.
    """

    def __init__(self, workdir: Path, first_step: int = 0) -> None:
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(self._path) if line["step"] <= first_step]
        self._seen = {(line["step"], line["split"]) for line in kept}
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        files.write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a")
        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Not a SummaryWriter: its thread dies of a full disk, and who writes to it waits for ever.
        self._board = EventsWriter(str(folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._event(step=first_step + 1, session_log=start)  # what follows it there is dropped

    def write(self, step: int, split: str, scalars: Mapping[str, float]) -> None:
        """One line: {"step": …, "split": "train" or "test" …, **scalars}."""
        self.note(step, split, **{k: float(v) for k, v in scalars.items()})
        if self._writes:
            for name, value in scalars.items():
                self._event(step=step, summary=summary.scalar(f"{split}/{name}", float(value)))
            self._board.flush()

    def note(self, step: int, split: str, **values: object) -> None:
        """One line of `metrics.jsonl` alone, of whatever JSON can hold."""
        self._seen.add((step, split))
        if self._writes:
            self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
            self._file.flush()

    def has(self, step: int, split: str) -> bool:
        """Whether there is such a line."""
        return (step, split) in self._seen

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture, uint8 [height, width, channels], for TensorBoard."""
        if self._writes:
            self._event(step=step, summary=summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Write out what is buffered."""
        if self._writes:
            self._file.close()
            self._board.close()

    def _event(self, **fields: Any) -> None:
        self._board.write_event(event_pb2.Event(wall_time=time.time(), **fields))


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file, oldest first; damaged ones, as by a kill, are left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(text))
    return [line for line in lines if _is_metrics(line)]


def _is_metrics(line: Any) -> bool:
    """Whether it is what `MetricsLog` writes: numbers, but for the split and the key of a note."""
    return isinstance(line, dict) and all(
        isinstance(value, str)
        if name == "split"
        else _is_key(value)
        if name == "key"
        else type(value) in (int, float)
        for name, value in ({"step": None, "split": None} | line).items()
    )


def _is_key(value: Any) -> bool:
    return isinstance(value, list) and all(type(word) is int for word in value)


def image_grid(images: np.ndarray, levels: int) -> np.ndarray:
    """Integers [n, height, width, channels] -> one uint8 picture, [H, W, 1 or 3], near square.

    Values 0 ... levels - 1 are spread over 0 ... 255. Channel counts other than 1 and 3 are shown
    one below the other in grey.
    """
    n, height, width, channels = images.shape
    if channels not in (1, 3):
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
    """Write uint8 [height, width, 1 or 3] as PNG, enlarged by a whole factor if it is tiny."""
    factor = max(1, -(-min_size // max(image.shape[:2])))
    enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(enlarged[..., 0] if enlarged.shape[-1] == 1 else enlarged).save(path)


def plot_losses(metrics: list[dict], path: Path) -> None:
    """The bound against the step, one curve a split, with the test set's standard errors."""
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
