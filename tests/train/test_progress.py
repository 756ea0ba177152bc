"""The bars: live on a terminal, plain lines elsewhere."""

import io
import re

from rich.console import Console

from vdm_jax.train import progress
from vdm_jax.train.progress import Bar, TrainingBar

SCALARS = {"bpd": 2.5, "reconstruction": 0.25, "prior": 0.5, "diffusion": 1.75}
TERMS = "bpd 2.500 = recon 0.250 + prior 0.500 + diff 1.750"


def shown(use, terminal):
    out = io.StringIO()
    use(Console(file=out, width=200, force_terminal=terminal, highlight=False))
    return out.getvalue()


def test_a_training_tells_its_rate_the_time_left_and_the_terms(monkeypatch):
    times = iter([0.0, 0.0, 20.0, 25.0])
    rates = []

    def use(console):
        with TrainingBar(100, 10, console) as bar:
            rates.append(bar.metrics(50, SCALARS))
            rates.append(bar.metrics(60, {**SCALARS, "skipped": 2.0}))
            bar.say("step 60: test bits per dim 2.0 ± 0.1")

    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    assert shown(use, terminal=False).splitlines() == [
        f"step 50/100  2.0 steps/s  00:00:25 left  {TERMS}",
        f"step 60/100  2.0 steps/s  00:00:20 left  {TERMS}, 2 skipped",
        "step 60: test bits per dim 2.0 ± 0.1",
    ]
    assert rates == [2.0, 2.0]


def test_on_a_terminal_there_is_a_bar_and_without_an_applied_step_no_terms():
    def use(console):
        with TrainingBar(100, 0, console) as bar:
            bar.metrics(20, {"skipped": 20.0})
            bar.metrics(50, SCALARS)

    out = shown(use, terminal=True)
    assert "50/100" in out and TERMS in out and "left" in out
    assert "left  20 skipped\n" in shown(use, terminal=False)


def test_elsewhere_each_tenth_is_a_line():
    def use(console):
        with Bar("things", 20, console=console) as bar:
            for _ in range(10):
                bar.advance(2)

    lines = shown(use, terminal=False).splitlines()
    assert [line.split()[1] for line in lines] == [f"{n}/20" for n in range(2, 21, 2)]
    assert re.fullmatch(r"things 2/20  \d+\.\d s", lines[0])
