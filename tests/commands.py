"""Runs the experiments as a user does: as a process of their own."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PYTEST = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
WARNINGS = ",".join(_PYTEST["filterwarnings"])

# A run of seconds: the paper's objective on digits with a tiny network.
TINY = tuple(
    f"--config.{part}.{setting}"
    for part, settings in {
        "model": "channels=16 num_blocks=1",
        "optimizer": "warmup_steps=5",
        "train": "steps=60 batch_size=32 steps_per_call=4 log_every=10 checkpoint_every=10",
        "eval": "every=60 final_repeats=1",
        "sample": "every=60 num_steps=5 count=4",
    }.items()
    for setting in settings.split()
)


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": os.environ.get("VDM_JAX_TESTS_XLA_FLAGS", ""),
        "JAX_PLATFORMS": "cpu",
        "COLUMNS": "200",
        "PYTHONWARNINGS": WARNINGS,
        "VDM_JAX_CACHE": os.environ["VDM_JAX_TESTS_CACHE"],
    }


def run(
    name: str, *arguments: object, timeout: float = 600, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *arguments),
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def refused(name: str, *arguments: object, **variables: str) -> str:
    """The one line with which a command refuses its arguments."""
    done = run(name, *arguments, **variables)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and done.stderr.strip().splitlines()[-1] == lines[0], done.stderr
    return lines[0]
