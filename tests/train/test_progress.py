"""The bars: live on a terminal, plain lines elsewhere."""

import contextlib
import io
import itertools
import re

import pytest
from rich.console import Console

from vdm_jax.train import progress
from vdm_jax.train.progress import Bar, TrainingBar

SCALARS = {"bpd": 2.5, "reconstruction": 0.25, "prior": 0.5, "diffusion": 1.75}
TERMS = "bpd 2.500 = recon 0.250 + prior 0.500 + diff 1.750"


def shown(use, terminal, width=200):
    out = io.StringIO()
    use(Console(file=out, width=width, force_terminal=terminal, highlight=False))
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
        f"step 50/100  2.0 steps/s  0:00:25 left  {TERMS}",
        f"step 60/100  2.0 steps/s  0:00:20 left  {TERMS}, 2 skipped",
        "step 60: test bits per dim 2.0 ± 0.1",
    ]
    assert rates == [2.0, 2.0]


def plain(text):
    """The lines as a terminal shows them, without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()


@pytest.mark.parametrize("total", [400, 10_000_000])
@pytest.mark.parametrize("nested", [False, True])
def test_eighty_columns_show_bar_step_rate_time_left_and_bound(total, nested):
    def use(console):
        with TrainingBar(total, 0, console) as bar:
            bar.move(100)
            bar.metrics(200, {**SCALARS, "bpd": 12.5})
            with Bar("evaluating", 8) if nested else contextlib.nullcontext():
                bar._rows.refresh()

    wide, narrow = (
        next(row for row in plain(shown(use, True, width)) if " steps/s " in row)
        for width in (200, 80)
    )
    assert TERMS.replace("2.5", "12.5") in wide
    assert len(narrow) <= 80
    shown_first = rf"training +━╸?━+ +200/{total} +left \d+:\d\d:\d\d [\d.]+ steps/s  bpd 12.500"
    assert re.match(shown_first, narrow.replace("╺", "━")), narrow


def test_without_an_applied_step_there_are_no_terms():
    def use(console):
        with TrainingBar(100, 0, console) as bar:
            bar.metrics(20, {"skipped": 20.0})

    assert shown(use, terminal=False).endswith("left  20 skipped\n")


def test_a_time_beyond_a_day_is_told_with_its_days_and_a_slow_rate_in_digits(monkeypatch):
    now = [0.0]

    def use(console):
        with TrainingBar(10_000_000, 0, console) as bar:
            now[0] = 100.0
            bar.metrics(1, SCALARS)

    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    piped = shown(use, terminal=False)
    assert piped.startswith("step 1/10000000  0.01 steps/s  11574 days, 1:45:00 left  bpd")


def test_a_bar_within_another_is_a_row_below_it_and_silent_elsewhere():
    def use(console):
        with TrainingBar(100, 0, console) as bar:
            bar.move(50)
            with Bar("evaluating", 4) as inner:
                inner.counted(len)("")
                bar._rows.refresh()
                inner.move(4)
        assert Bar._first is None

    rows = plain(shown(use, terminal=True))
    below = [after for row, after in itertools.pairwise(rows) if "50/100" in row]
    assert any(row.startswith("evaluating ━") and "1/4" in row for row in below)
    assert shown(use, terminal=False) == ""


def test_elsewhere_each_tenth_is_a_line():
    def use(console):
        with Bar("things", 20, console=console) as bar:
            for done in range(2, 21, 2):
                bar.move(done)

    lines = shown(use, terminal=False).splitlines()
    assert [line.split()[1] for line in lines] == [f"{n}/20" for n in range(2, 21, 2)]
    assert re.fullmatch(r"things 2/20  \d+\.\d s  0:00:00 left", lines[0])
