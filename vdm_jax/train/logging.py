"""The metrics of a run: a file of JSON lines, and TensorBoard's event files."""

import contextlib
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from vdm_jax import files


class MetricsLog:
    """Scalars by step, written to `metrics.jsonl` and to event files in `tensorboard/`.

    A run that goes on at `first_step` drops later lines, and `damaged` ones, which it counts; at 0
    what was there is kept in the file `replaced`. Of several processes the first one writes, and
    none without a `workdir`.
    """

    def __init__(self, workdir: Path | None, first_step: int = 0) -> None:
        self._writes = workdir is not None and jax.process_index() == 0
        self._seen, self.damaged, self.replaced = set[tuple[int, str]](), 0, ""
        if workdir is None:
            return
        self._path = workdir / "metrics.jsonl"
        lines, self.damaged = _read(self._path)
        # A step that was skipped has the number of the one before it.
        kept = [v for v in lines if v["step"] + (v["split"] == "skipped") <= first_step]
        self._seen = {(line["step"], line["split"]) for line in kept}
        if not self._writes:
            return
        if lines and not first_step:
            names = (f"metrics.{number}.jsonl" for number in itertools.count(1))
            self.replaced = next(name for name in names if not (workdir / name).exists())
            files.write(workdir / self.replaced, self._path.read_bytes())
        files.write(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._folder = workdir / "tensorboard"
        self._folder.mkdir(exist_ok=True)
        # Not a SummaryWriter: its thread ends on a full disk, and write() then waits for ever.
        self._board = EventsWriter(str(self._folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._event(step=first_step + 1, session_log=start)  # TensorBoard drops what follows it

    def write(self, step: int, split: str, scalars: Mapping[str, float]) -> None:
        """Writes one line, {"step": …, "split": "train" or "test" …, **scalars}, to both."""
        self.note(step, split, **{k: float(v) for k, v in scalars.items()})
        if self._writes:
            for name, value in scalars.items():
                self._event(step=step, summary=summary.scalar(f"{split}/{name}", float(value)))
            with files.naming(self._folder):
                self._board.flush()

    def note(self, step: int, split: str, **values: object) -> None:
        """Writes one line of any JSON values to `metrics.jsonl` alone."""
        self._seen.add((step, split))
        if self._writes:
            line = {"step": step, "split": split, **values}
            files.append(self._path, json.dumps(line) + "\n")

    def has(self, step: int, split: str) -> bool:
        """Returns whether there is a line of this step and split."""
        return (step, split) in self._seen

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes a picture, uint8 [height, width, channels], for TensorBoard."""
        if self._writes:
            self._event(step=step, summary=summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Writes what is buffered for TensorBoard and closes its file."""
        if self._writes:
            with files.naming(self._folder):
                self._board.close()

    def _event(self, **fields: Any) -> None:
        with files.naming(self._folder):
            self._board.write_event(event_pb2.Event(wall_time=time.time(), **fields))


def read_metrics(path: Path) -> list[dict]:
    """Returns the lines of a metrics file, oldest first, without those that are damaged."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict], int]:
    """Returns the lines of a metrics file, and how many are damaged: a kill may cut one short."""
    lines = []
    texts = path.read_bytes().splitlines() if path.exists() else []
    for text in texts:
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(text))
    good = [line for line in lines if _is_metrics(line)]
    return good, len(texts) - len(good)


def _is_metrics(line: Any) -> bool:
    """Returns whether `MetricsLog` can have written it: numbers, but for "split" and "key"."""
    if not isinstance(line, dict) or not isinstance(line.get("key", []), list):
        return False
    numbers = {"step": None, **line, "split": 0, "key": 0}.values()
    words = [*numbers, *line.get("key", [])]
    return isinstance(line.get("split"), str) and all(type(x) in (int, float) for x in words)
