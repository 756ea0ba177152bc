"""Reads a run's newest checkpoint while another process saves and removes them quickly."""

import os
import subprocess
import sys
from pathlib import Path

import jax
from toy import assert_equal, state_at

from vdm_jax.train import sharding
from vdm_jax.train.load_checkpoint import RemovedError, complete_steps, load_params

WRITER = """
import sys, itertools
from pathlib import Path
from toy import state_at
from vdm_jax.train.checkpoint import Checkpoints
with Checkpoints(Path(sys.argv[1]), {}, keep=1) as checkpoints:
    for step in itertools.count(1):
        checkpoints.save(step, state_at(step))
"""


def test_two_hundred_readings_are_right_or_say_that_it_was_removed(tmp_path):
    folder, root = tmp_path / "c", Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (root, root / "tests", root / "tests" / "train")))
    environment = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""}
    writer = subprocess.Popen([sys.executable, "-c", WRITER, folder], env=environment)
    mesh = sharding.make_mesh(jax.devices()[:1])
    expected, right, removed = jax.eval_shape(lambda: state_at(0).params), set(), 0
    try:
        while not complete_steps(folder):
            assert writer.poll() is None
        for _ in range(200):  # a DamagedError would end it
            try:
                step, params = load_params(folder, expected, mesh)
            except RemovedError:
                removed += 1
                continue
            assert_equal(params, state_at(step).ema_params)
            right.add(step)
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    print(f"{removed} of 200 removed meanwhile, {len(right)} steps read")
    assert len(right) > 5
