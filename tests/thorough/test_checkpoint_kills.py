"""A save is there whole or not at all, whenever the process is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

from vdm_jax.train.load_checkpoint import complete_steps

HERE = Path(__file__).parent


def test_fifty_kills_at_any_moment_of_a_save_cost_no_finished_step(tmp_path):
    done = subprocess.run(
        [sys.executable, HERE / "killed_saves.py", tmp_path / "c", "50"],
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lives) == 51
    finished, in_the_middle = 0, 0
    for number, life in enumerate(lives):
        restored = [line for line in life if "restored" in line]
        assert len(restored) == (number > 0) and all(line["same"] for line in restored)
        for line in restored:  # a step may have been complete before the child could say so
            assert finished <= line["restored"] <= finished + 1
        finished = max([finished] + [line.get("restored", line.get("saved", 0)) for line in life])
        in_the_middle += "saving" in life[-1] or "restored" in life[-1]
    assert in_the_middle > 40
    assert complete_steps(tmp_path / "c")[-1] >= finished
