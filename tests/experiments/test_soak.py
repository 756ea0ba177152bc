"""What makes a soak fail."""

import signal
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import soak

STOP = {"signal": "SIGTERM", "step": 10, "exit_code": 0, "right": True}
GOOD = {
    "steps": 100, "wanted_stops": 2, "different": [], "stops": [STOP, STOP],
    "memory_mib": [(i, 500.0) for i in range(1, 17)], "growth": 0.01,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"different": ["params/w"]}, "different: params/w"),
        ({"stops": [STOP, STOP | {"right": False}]}, "wrong exit codes"),
        ({"stops": [STOP]}, "ended before the last 1 stops"),
        ({"stops": []}, "ended before the last 2 stops"),
        ({"growth": None}, "too short"),
        ({"growth": 0.3}, "grew by 30%"),
    ],
)
def test_each_of_its_promises_can_fail(change, said):
    assert soak.failures(GOOD) == []
    (found,) = soak.failures(GOOD | change)
    assert said in found


def run_of(folder, value, result="{}"):
    with ocp.CheckpointManager(folder / "checkpoints", item_names=("state",)) as manager:
        state = {"a": np.arange(3.0), "b": {"c": np.float32(value)}}
        manager.save(7, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
    (folder / "result.json").write_text(result)
    return folder


def test_a_single_bit_is_seen(tmp_path):
    a = run_of(tmp_path / "a", 1.0)
    assert soak.different(a, run_of(tmp_path / "b", 1.0)) == []
    assert soak.different(a, run_of(tmp_path / "c", np.nextafter(np.float32(1), 2))) == [
        "['b']['c']"
    ]
    assert soak.different(a, run_of(tmp_path / "d", 1.0, "{ }")) == ["result.json"]


def test_growth_is_that_of_the_settled_memory():
    rising = [(i, 100.0 + (50.0 if i > 12 else 0.0)) for i in range(1, 17)]
    assert soak._growth(rising) == pytest.approx(0.5)
    assert soak._growth([(1, 10.0), *((i, 100.0) for i in range(2, 17))]) == pytest.approx(0.0)
    assert soak._growth(rising[:5]) is None


# Counts up in metrics.jsonl; each signal ends it as a run is ended.
FAKE = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1]); folder.mkdir(exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
signal.signal(signal.SIGINT, lambda *_: os._exit(130))
file = folder / "metrics.jsonl"
begun = len(file.read_text().splitlines()) if file.exists() else 0
for step in range(begun + 1, 61):
    with file.open("a") as out:
        out.write(json.dumps({"step": step, "split": "train"}) + chr(10))
    time.sleep(0.02)
"""


def test_a_run_is_stopped_as_often_as_was_asked(tmp_path, monkeypatch):
    import random

    monkeypatch.setattr(soak, "STARTING", 0.0)
    monkeypatch.setattr(random.Random, "uniform", lambda self, low, high: 0.0)
    command = [sys.executable, "-c", FAKE, str(tmp_path / "run")]
    stops = soak.stopped(command, tmp_path / "run", [5, 20, 40], random.Random(3))
    assert len(stops) == 3 and all(stop["right"] for stop in stops)
    assert [stop["step"] >= at for stop, at in zip(stops, (5, 20, 40), strict=True)] == [True] * 3
    assert soak._step(tmp_path / "run") == 60
    for stop in stops:
        assert stop["exit_code"] == soak.SIGNALS[signal.Signals[stop["signal"]]]
