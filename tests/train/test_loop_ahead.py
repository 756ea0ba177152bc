"""The loop and the device: how far ahead it runs, and when it waits. The step here is a fake."""

import contextlib
import json

import jax
import numpy as np
import pytest

from vdm_jax.evaluation.bound import Estimate, Evaluation
from vdm_jax.train import interrupts, loop, sharding
from vdm_jax.train.step import TrainState

STEPS, LOG_EVERY = 12, 6


class Device:
    """Finishes a call only when it is waited for: the worst case for a bound."""

    def __init__(self):
        self.begun = self.done = 0
        self.most = 0
        self.waits = []  # (calls begun, the call waited for)
        self.fetched = []  # calls whose metrics were fetched, and when

    def call(self, state, chunk, start, stop):
        self.begun += 1
        self.most = max(self.most, self.begun - self.done)
        return state, {"bpd": Number(self, self.begun), "reconstruction": Number(self, self.begun),
                       "prior": Number(self, self.begun),
                       "diffusion": Number(self, self.begun),
                       "skipped": NoneSkipped(self, self.begun)}  # fmt: skip


class Number:
    """A metric that isn't there before it is waited for."""

    def __init__(self, device, call):
        self.device, self.call = device, call

    def block_until_ready(self):
        if self.device.done < self.call:
            self.device.waits.append((self.device.begun, self.call))
            self.device.done = self.call
        return self

    def __array__(self, dtype=None, copy=None):
        self.device.fetched.append((self.device.begun, self.call))
        self.device.done = max(self.device.done, self.call)
        return np.asarray(float(self.call))


class NoneSkipped(Number):
    """The few bytes by which the loop sees that a call has ended."""

    def __array__(self, dtype=None, copy=None):
        self.block_until_ready()
        return np.zeros(1, np.int32)


class NoCheckpoints:
    def latest_step(self):
        return None

    def save(self, step, state):
        pass

    def check_written(self):
        pass


def train(device, workdir, state, checkpoints):
    (workdir / "samples").mkdir()
    one = Estimate(1.0, 0.1)
    mesh = sharding.make_mesh(jax.devices()[:1])
    steps = int(state.step) + STEPS
    loop.train(
        state,
        device.call,
        lambda start: contextlib.nullcontext(iter([{"images": np.zeros((1, 1))}] * STEPS)),
        lambda state, last: Evaluation(one, one, one, one, 4, 1),
        lambda state: np.zeros((4, 4, 3), np.uint8),
        loop.Plan(steps, 1, LOG_EVERY, steps, steps, steps, 3),
        checkpoints,
        workdir,
        mesh,
        interrupts.Stop(mesh),
        jax.random.key(0),
    )


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    device = Device()
    state = TrainState(np.int32(0), None, None, None, np.int32(0))
    train(device, tmp_path_factory.mktemp("run"), state, NoCheckpoints())
    return device


def test_no_more_than_a_few_calls_are_ever_on_the_device(device):
    assert device.begun == STEPS
    assert device.most == loop.AHEAD + 1  # two on the device when the next is put there


def test_the_newest_calls_are_never_waited_for_between_logs(device):
    """So one runs while the host prepares the next batch."""
    between = [(begun, call) for begun, call in device.waits if begun not in (LOG_EVERY, STEPS)]
    assert between
    assert all(begun - call == loop.AHEAD for begun, call in between)


def test_metrics_are_fetched_only_when_they_are_logged(device):
    assert {begun for begun, _ in device.fetched} == {LOG_EVERY, STEPS}
    assert {call for _, call in device.fetched} == set(range(1, STEPS + 1))


def test_a_state_with_more_skipped_steps_than_are_borne_ends_the_run(tmp_path):
    """As where the limit was lowered: nothing is applied to such a state, and nothing is saved."""

    class Frozen(Device):
        def call(self, state, chunk, start, stop):
            state, metrics = super().call(state, chunk, start, stop)
            return state, metrics | {"skipped": np.full(1, 8, np.int32)}

    saved = []

    class Checkpoints(NoCheckpoints):
        def save(self, step, state):
            saved.append((step, int(state.step), int(state.skipped)))

    with pytest.raises(loop.TrainingError, match="from step 2 on, 8 steps in a row"):
        train(
            Frozen(),
            tmp_path,
            TrainState(np.int32(10), None, None, None, np.int32(8)),
            Checkpoints(),
        )
    assert saved == [(2, 2, 0)]
    found = json.loads((tmp_path / loop.NONFINITE).read_text())
    assert found["step"] == 2 and found["in_a_row"] == 8
