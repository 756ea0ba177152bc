"""The loop: what it does when, how far ahead of the device it runs. The step here is a fake."""

import contextlib
import json

import jax
import numpy as np
import pytest

from vdm_jax.evaluation.bound import Estimate, Evaluation
from vdm_jax.train import interrupts, loop, sharding
from vdm_jax.train.logging import read_metrics
from vdm_jax.train.step import TrainState, step_key

KEY = jax.random.key(3)


class Fake:
    """A device, checkpoints, and all that a run calls; it notes what happened.

    A call of the step is finished only when it is waited for: the worst case for a bound.
    """

    def __init__(self, skipped=None):
        self.events, self.waits, self.fetched = [], [], []
        self.begun = self.done = self.most = 0
        self.skipped = skipped or {}  # step -> how many in a row
        self.newest = None

    def step(self, state, chunk, start, stop):
        self.begun += 1
        self.most = max(self.most, self.begun - self.done)
        first, size = int(state.step), len(chunk["images"])
        assert start == first % size and chunk["images"][start, 0] == first
        self.events.append(("step", first, first + stop - start))
        skipped = np.zeros(size, np.int32)
        for at in range(start, stop):
            skipped[at] = self.skipped.get(first + at - start, 0)
        names = ("bpd", "reconstruction", "prior", "diffusion")
        metrics = {name: Number(self, self.begun, float(first)) for name in names}
        metrics["skipped"] = Number(self, self.begun, skipped, seen=False)
        state = state._replace(step=np.int32(first + stop - start))
        return state._replace(skipped=np.int32(skipped[stop - 1])), metrics

    def batches(self, start):
        size = self.plan.steps_per_call
        chunks = ({"images": np.arange(at, at + size)[:, None]} for at in range(start, 10**6, size))
        return contextlib.nullcontext(chunks)

    def evaluate(self, state, last):
        self.events.append(("evaluate", int(state.step), last))
        return Evaluation(*[Estimate(1.0, 0.1)] * 4, 4, 1)

    def sample(self, state):
        self.events.append(("sample", int(state.step)))
        return np.zeros((4, 4, 3), np.uint8)

    def latest_step(self):
        return self.newest

    def save(self, step, state):
        assert step == int(state.step)
        self.events.append(("save", step))
        self.newest, self.last = step, state

    def check_written(self):
        pass

    def train(self, workdir, plan, first=0, skipped=0):
        """Trains from step `first`."""
        (workdir / "samples").mkdir(exist_ok=True)
        self.plan, mesh = plan, sharding.make_mesh(jax.devices()[:1])
        self.stop = interrupts.Stop(mesh)
        run = loop.Run(
            plan, self.step, KEY, self.batches, self.evaluate, self.sample, self, workdir, mesh,
            self.stop,
        )  # fmt: skip
        return loop.train(run, TrainState(np.int32(first), None, None, None, np.int32(skipped)))


class Number:
    """A metric that isn't there before it is waited for."""

    def __init__(self, device, call, value, seen=True):
        self.device, self.call, self.value, self.seen = device, call, value, seen

    def block_until_ready(self):
        if self.device.done < self.call:
            self.device.waits.append((self.device.begun, self.call))
            self.device.done = self.call
        return self

    def __array__(self, dtype=None, copy=None):
        if self.seen:
            self.device.fetched.append((self.device.begun, self.call))
        self.block_until_ready()
        return np.asarray(self.value)


def key_of(step):
    return np.asarray(jax.random.key_data(step_key(KEY, step))).tolist()


def test_each_thing_is_done_when_it_is_due_and_at_the_end(tmp_path):
    """The order too: a checkpoint before the evaluation and the samples of its step."""
    fake = Fake()
    state, result = fake.train(tmp_path, loop.Plan(11, 4, 3, 5, 6, 8, 3))
    assert fake.events == [
        ("step", 0, 3), ("step", 3, 4), ("step", 4, 5), ("evaluate", 5, False),
        ("step", 5, 6), ("sample", 6), ("step", 6, 8), ("save", 8), ("step", 8, 9),
        ("step", 9, 10), ("evaluate", 10, False),
        ("step", 10, 11), ("save", 11), ("evaluate", 11, True), ("sample", 11),
    ]  # fmt: skip
    assert int(state.step) == 11 and result.num_images == 4
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [x["step"] for x in lines if x["split"] == "train"] == [3, 6, 9, 11]
    assert [x["step"] for x in lines if x["split"] == "test"] == [5, 10, 11]
    # Step 4's call has one step of value 3, that of step 5 one of 4, that of 6 one of 5.
    assert [x["bpd"] for x in lines if x["split"] == "train"] == [0.0, 4.0, (2 * 6 + 8) / 3, 9.5]
    samples = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert samples == ["00000006.png", "00000011.png"] and (tmp_path / "loss.png").exists()


def test_a_run_that_goes_on_does_first_what_was_due_and_is_not_there(tmp_path, capsys):
    plan = loop.Plan(11, 4, 3, 5, 5, 8, 3)
    (tmp_path / loop.NONFINITE).touch()  # of an earlier start
    first = Fake()
    first.train(tmp_path, plan._replace(steps=5))
    assert not (tmp_path / loop.NONFINITE).exists()
    (tmp_path / "samples" / "00000005.png").unlink()
    (tmp_path / "loss.png").unlink()
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 6, "spl')
    again = Fake()
    again.train(tmp_path, plan._replace(steps=5), first=5)
    assert again.events == [("sample", 5), ("evaluate", 5, True)]
    assert "1 damaged line(s), left out" in capsys.readouterr().out
    assert (tmp_path / "loss.png").exists()
    (tmp_path / "samples" / "00000005.png").unlink()
    later, other = (tmp_path / "samples" / name for name in ("00000010.png", "10.png"))
    for picture in (later, other):  # of another training from step 5 on, and of somebody else
        picture.touch()
    second = Fake()
    second.newest = 5
    second.train(tmp_path, plan, first=5)
    assert second.events[:2] == [("sample", 5), ("step", 5, 6)]  # evaluated it was
    assert later.stat().st_size > 0 and other.stat().st_size == 0
    done = Fake()
    done.newest = 11
    _, result = done.train(tmp_path, plan, first=11)
    assert done.events == [("evaluate", 11, True)] and result.num_images == 4


def test_a_stop_is_heeded_after_the_log_and_leaves_a_checkpoint(tmp_path):
    class Asked(Fake):
        def step(self, state, *chunk):
            if state.step == 4:
                self.stop._asked.append(15)
            return super().step(state, *chunk)

    fake = Asked()
    with pytest.raises(interrupts.Stopped):
        fake.train(tmp_path, loop.Plan(100, 4, 6, 50, 50, 50, 3))
    assert fake.events[-1] == ("save", fake.newest) and 6 <= fake.newest < 12
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 6


def test_a_run_whose_reader_has_gone_leaves_a_checkpoint(tmp_path):
    """As in `train | head`: a print raises BrokenPipeError, or SystemExit where it is rich's."""
    for gone in (BrokenPipeError, SystemExit):

        class Gone(Fake):
            def step(self, state, *chunk, gone=gone):
                if state.step == 4:
                    raise gone
                return super().step(state, *chunk)

        fake, workdir = Gone(), tmp_path / gone.__name__
        workdir.mkdir()
        with pytest.raises(gone):
            fake.train(workdir, loop.Plan(100, 4, 6, 50, 50, 50, 3))
        assert fake.events == [("step", 0, 4), ("save", 4)]


def test_the_loop_is_a_bounded_number_of_calls_ahead_of_the_device(tmp_path):
    fake = Fake()
    fake.train(tmp_path, loop.Plan(12, 1, 6, 12, 12, 12, 3))
    assert fake.begun == 12 and fake.most == loop.AHEAD + 1  # two when the next is put there
    # The newest calls are never waited for between logs: one runs while the host prepares.
    between = [begun - call for begun, call in fake.waits if begun not in (6, 12)]
    assert between and set(between) == {loop.AHEAD}
    # Metrics are fetched only when they are logged.
    assert {begun for begun, _ in fake.fetched} == {6, 12}
    assert {call for _, call in fake.fetched} == set(range(1, 13))


def test_skipped_steps_are_noted_with_their_key_and_left_out_of_the_mean(tmp_path):
    fake = Fake(skipped={1: 1, 2: 2})
    fake.train(tmp_path, loop.Plan(6, 1, 6, 6, 6, 6, 3))
    one, two, mean = read_metrics(tmp_path / "metrics.jsonl")[:3]
    assert one == {"step": 1, "split": "skipped", "key": key_of(1)} and two["key"] == key_of(2)
    assert mean["skipped"] == 2 and mean["bpd"] == (0 + 3 + 4 + 5) / 4


def test_after_too_many_in_a_row_the_state_before_them_is_saved(tmp_path):
    fake = Fake(skipped={2: 1, 3: 2, 4: 3, 5: 3, 6: 3, 7: 3})
    said = r"from step 2 on, 3 steps in a row .*learning_rate"
    with pytest.raises(loop.TrainingError, match=said):
        fake.train(tmp_path, loop.Plan(12, 1, 1, 12, 12, 12, 3))
    assert fake.events[-1] == ("save", 2) and int(fake.last.skipped) == 0
    found = json.loads((tmp_path / loop.NONFINITE).read_text())
    assert found == {"step": 2, "in_a_row": 3, "checkpoint": 2, "key": key_of(2)}
