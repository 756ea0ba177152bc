"""A long run on digits that is killed and restarted at random, beside one that is left alone.

    python -m experiments.soak --workdir=DIR [--steps=20000] [--stops=20]

Each stop is SIGKILL, SIGTERM or SIGINT at a random moment, some of them while the run is starting.
The two must end in the same state, bit for bit, with the same result; each stop must end in the
right exit code; and the memory of the run that is left alone must not grow. Leaves soak.json; ends
with code 1 if any of it fails.
"""

import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags

from experiments import cli, setup
from experiments.cli import UserError
from vdm_jax.train import report

SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 0, signal.SIGINT: 130}
"""How a run is stopped, and the exit code that is right for it."""
STARTING = 0.2  # share of the stops that come before the first step of a life
GROWTH = 0.1  # of the memory, see `_growth`: more is a leak


def soak(argv: list[str]) -> dict[str, Any]:
    """Parse `argv`, run both, compare; what was found is returned as in soak.json."""
    values = flags.FlagValues()
    text, number, _ = cli.definers(values)
    text("workdir", "folder for both runs; it must be empty")
    number("steps", "of each run", 20_000)
    number("stops", "of the second run", 20)
    number("seed", "settles how and when it is stopped", 0, 0)
    cli.parse_flags(values, argv, __doc__)
    if not values.workdir:
        raise UserError("--workdir=DIR is missing: an empty folder for both runs")
    workdir = setup.make_workdir(Path(values.workdir))
    if any(workdir.iterdir()):
        raise UserError(f"--workdir={workdir} isn't empty: a soak starts from nothing")
    calm, rough = workdir / "calm", workdir / "rough"
    memory = left_alone(_command(calm, values.steps), calm)
    rng = random.Random(values.seed)
    moments = sorted(rng.randrange(values.steps) for _ in range(values.stops))
    stops = stopped(_command(rough, values.steps), rough, moments, rng)
    found = {
        "steps": values.steps,
        "wanted_stops": values.stops,
        "different": different(calm, rough),
        "stops": stops,
        "memory_mib": memory,
        "growth": _growth(memory),
    }
    (workdir / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    _print(found)
    return found


def _command(workdir: Path, steps: int) -> list[str]:
    settings = {
        "train.steps": steps,
        "train.checkpoint_every": max(steps // 40, 1),
        "train.log_every": max(steps // 200, 1),
        "eval.every": max(steps // 8, 1),
        "eval.final_repeats": 8,
        "sample.every": max(steps // 4, 1),
    }
    given = [f"--config.{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "experiments.digits", f"--workdir={workdir}", *given]


def left_alone(command: Sequence[str], workdir: Path) -> list[tuple[int, float]]:
    """Run it to its end: [(step, resident MiB)] in the course of it. UserError if it fails."""
    memory: list[tuple[int, float]] = []
    with _begun(command, workdir) as process:
        for _ in _running(process):
            step, resident = _step(workdir), _resident(process.pid)
            if resident and step > (memory[-1][0] if memory else 0):
                memory.append((step, resident))
    _check_ended(process, workdir)
    return memory


def stopped(
    command: Sequence[str], workdir: Path, moments: Sequence[int], rng: random.Random
) -> list[dict[str, Any]]:
    """Run it to its end, stopped once at or soon after each of the steps `moments`, in order.

    Some are stopped while they start instead. Returns of each stop the signal, the step that was
    logged last and the exit code; none where the run ended first.
    """
    stops = []
    for moment in moments:
        number, starting = rng.choice(list(SIGNALS)), rng.random() < STARTING
        wait = rng.uniform(0.0, 10.0 if starting else 1.0)
        with _begun(command, workdir) as process:
            due = time.monotonic() + wait if starting else None
            for now in _running(process):
                if due is None and _step(workdir) >= moment:
                    due = now + wait
                if due is not None and now >= due:
                    process.send_signal(number)
                    break
            else:
                break  # it ended first
        code = process.returncode
        # While Python starts nothing listens yet, and a signal ends it as the system has it.
        right = code == SIGNALS[number] or (starting and code == -number)
        stops.append({
            "signal": signal.Signals(number).name, "step": _step(workdir), "exit_code": code,
            "right": right,
        })  # fmt: skip
    with _begun(command, workdir) as process:
        pass
    _check_ended(process, workdir)
    return stops


def different(a: Path, b: Path) -> list[str]:
    """The leaves of the newest states of two runs that aren't the same bits, and other results."""
    states = [_newest(workdir / "checkpoints") for workdir in (a, b)]
    names = sorted(states[0].keys() | states[1].keys())
    found = [name for name in names if not _same(states[0].get(name), states[1].get(name))]
    texts = [(workdir / "result.json").read_text() for workdir in (a, b)]
    return found + (["result.json"] if texts[0] != texts[1] else [])


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.tobytes() == b.tobytes()


def _newest(folder: Path) -> dict[str, np.ndarray]:
    with ocp.CheckpointManager(folder, item_names=("state",)) as manager:
        item = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = manager.restore(manager.latest_step(), args=item)["state"]
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@contextlib.contextmanager
def _begun(command: Sequence[str], workdir: Path) -> Iterator[subprocess.Popen]:
    """A life of the run, waited for at the end of the block; what it says goes to a log."""
    with workdir.with_suffix(".log").open("a") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Where a soak runs in the background, a shell has switched the signal off.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield process
            process.wait()
        finally:
            process.kill()
            process.wait()


def _running(process: subprocess.Popen) -> Iterator[float]:
    """The time, now and then, while it runs."""
    while process.poll() is None:
        yield time.monotonic()
        time.sleep(0.05)


def _check_ended(process: subprocess.Popen, workdir: Path) -> None:
    if process.returncode:
        log = workdir.with_suffix(".log")
        raise UserError(f"a run failed with exit code {process.returncode}: see the end of {log}")


def _step(workdir: Path) -> int:
    """The step that was logged last."""
    lines = report.read_metrics(workdir / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def _resident(process: int) -> float:
    """MiB in memory; 0 where it has gone, or the system doesn't tell."""
    statm = Path(f"/proc/{process}/statm")
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def _growth(memory: Sequence[tuple[int, float]]) -> float | None:
    """Of the median memory, from the second quarter of the run to the last; None if unknown."""
    if len(memory) < 8:
        return None
    mib = np.array([resident for _, resident in memory])
    quarter = len(mib) // 4
    return float(np.median(mib[-quarter:]) / np.median(mib[quarter : 2 * quarter]) - 1.0)


def failures(found: Mapping[str, Any]) -> list[str]:
    """What is wrong with what was found, in words."""
    wrong = [stop for stop in found["stops"] if not stop["right"]]
    missing = found["wanted_stops"] - len(found["stops"])
    growth = found["growth"]
    return [
        words
        for words, holds in (
            (f"different: {', '.join(found['different'])}", found["different"]),
            (f"wrong exit codes: {wrong}", wrong),
            (f"the run ended before the last {missing} stops", missing > len(found["stops"]) / 4),
            ("too short a run to tell of its memory", growth is None),
            (f"the memory grew by {growth or 0.0:.0%}", growth is not None and growth > GROWTH),
        )
        if holds
    ]


def _print(found: Mapping[str, Any]) -> None:
    counts = collections.Counter(stop["signal"] for stop in found["stops"])
    lives = ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))
    print(f"{found['steps']} steps, stopped and restarted {len(found['stops'])} times ({lives})")
    if not found["different"]:
        print("the same bits as the run left alone, in every leaf of the state and the result")
    rows = found["memory_mib"][:: max(len(found["memory_mib"]) // 8, 1)]
    print("memory, MiB: " + ", ".join(f"{mib:.0f} at step {step}" for step, mib in rows))
    if found["growth"] is not None:
        print(f"growth from the second quarter of the run to the last: {found['growth']:+.1%}")
    for failure in failures(found):
        print(f"FAILED: {failure}")


def _main() -> None:
    if failures(soak(sys.argv)):
        raise SystemExit(1)


if __name__ == "__main__":
    cli.guard(_main)
