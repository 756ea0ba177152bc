"""Commands on a run that goes on and keeps one checkpoint, which it removes under them."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import vdmz
from commands import environment
from toy import assert_equal

from experiments import sample
from vdm_jax.run import build, restore
from vdm_jax.run import vdmz as codec
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.load_checkpoint import RemovedError, complete_steps, load_settings
from vdm_jax.train.step import TrainState

OPTIONS = dict.fromkeys(
    ("checkpoint", "official", "pretrained", "model", "tile", "data", "path", "manual_dir",
     "data_dir", "batch_size")
)  # fmt: skip


def average(state, step):
    """EMA parameters by which one can tell of which step they are."""
    factor = np.float32(1 + step / 1024)
    return jax.tree.map(lambda leaf: np.asarray(leaf) * factor, state["params"])


def save_for_ever(workdir):
    """Saves as a run does that goes on, as quickly as that can be done."""
    folder, state = workdir / "checkpoints", tiny.state_of(workdir)
    first, settings = load_settings(folder, None)
    with Checkpoints(folder, settings, keep=1) as checkpoints:
        for step in itertools.count(first + 1):
            of_step = {"step": np.int32(step), "ema_params": average(state, step)}
            checkpoints.save(step, TrainState(**state | of_step))


class Readers:
    """Three commands' readings of a run, and all that they do; each returns the step it was of."""

    def __init__(self, workdir):
        self.workdir, self.state, self.count = workdir, tiny.state_of(workdir), itertools.count()
        np.save(workdir / "images.npy", vdmz.digits(2))

    def read(self):
        found = restore.from_options(OPTIONS | {"workdir": str(self.workdir)}, build.make_mesh())
        assert_equal(found.params, average(self.state, found.step))
        return found.step

    def read_to_compress(self):
        source, name = codec.load(OPTIONS | {"workdir": str(self.workdir)}, (8, 8, 1))
        step = int(name.split()[-1])
        assert_equal(source.params, average(self.state, step))
        return step

    def evaluate(self):
        return tiny.evaluate(self.workdir, "--images=4", "--repeats=1")["model"]["step"]

    def sample(self):
        found = sample.sample(["", f"--workdir={self.workdir}", "--n=1", "--num_steps=1"])
        return found["model"]["step"]

    def compress(self):
        out = self.workdir / f"{next(self.count)}.vdmz"
        made = vdmz.compress(self.workdir, self.workdir / "images.npy", "-o", out)
        assert made.path.stat().st_size > 0


@pytest.mark.usefixtures("compiled_once")
def test_two_hundred_readings_are_right_or_say_that_it_was_removed(digits_run, tmp_path):
    workdir = Path(shutil.copytree(digits_run, tmp_path / "run"))
    readers = Readers(workdir)
    reads = (readers.read, readers.read_to_compress)
    commands = (readers.evaluate, readers.sample, readers.compress)
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    writer = subprocess.Popen([sys.executable, __file__, workdir], env=environment() | paths)
    removed, steps = 0, set()
    try:
        while complete_steps(workdir / "checkpoints")[-1] == 60:
            assert writer.poll() is None
        for i in range(200):  # a DamagedError, or any other, would end it
            try:
                steps.add(reads[i % 2]() if i % 10 else commands[i // 10 % 3]())
            except RemovedError:
                removed += 1
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    print(f"{removed} of 200 removed meanwhile, {len(steps)} steps read")
    assert len(steps) > 5


if __name__ == "__main__":
    save_for_ever(Path(sys.argv[1]))
