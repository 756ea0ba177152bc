"""The bars: live on a terminal, plain lines elsewhere."""

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
        f"step 50/100  2.0 steps/s  00:00:25 left  {TERMS}",
        f"step 60/100  2.0 steps/s  00:00:20 left  {TERMS}, 2 skipped",
        "step 60: test bits per dim 2.0 ± 0.1",
    ]
    assert rates == [2.0, 2.0]


def plain(text):
    """The lines as a terminal shows them, without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()


@pytest.mark.parametrize("total", [400, 10_000_000])
def test_eighty_columns_show_bar_step_rate_time_left_and_bound(total):
    def use(console):
        with TrainingBar(total, 0, console) as bar:
            bar.metrics(200, SCALARS)

    wide, narrow = (plain(shown(use, True, width))[-1] for width in (200, 80))
    assert TERMS in wide
    assert len(narrow) <= 80 and re.match(r"training ━{6,} ?━*", narrow)
    assert re.search(rf"200/{total}  [\d.]+ steps/s  (\d+ d )?\d\d:\d\d:\d\d left", narrow)
    assert narrow.rstrip().endswith("  bpd 2.500")


def test_without_an_applied_step_there_are_no_terms():
    def use(console):
        with TrainingBar(100, 0, console) as bar:
            bar.metrics(20, {"skipped": 20.0})

    assert shown(use, terminal=False).endswith("left  20 skipped\n")


def test_a_time_beyond_a_day_is_told_with_its_days():
    assert progress.duration(59.9) == "00:00:59"
    assert progress.duration(24 * 3600 - 1) == "23:59:59"
    assert progress.duration(11 * 24 * 3600 + 3 * 3600 + 301) == "11 d 03:05:01"


def test_a_bar_within_another_is_a_row_below_it_and_silent_elsewhere():
    def use(console):
        with TrainingBar(100, 0, console) as bar:
            bar.move(50)
            with Bar("evaluating", 4) as inner:
                inner.advance(1)
                bar._live.refresh()
                inner.advance(3)
            with Bar("evaluating", 4) as inner:
                pass
        assert Bar._open == []

    rows = plain(shown(use, terminal=True))
    below = [after for row, after in itertools.pairwise(rows) if "50/100" in row]
    assert any(row.startswith("evaluating ━") and "1/4" in row for row in below)
    assert shown(use, terminal=False) == ""


def test_elsewhere_each_tenth_is_a_line():
    def use(console):
        with Bar("things", 20, console=console) as bar:
            for _ in range(10):
                bar.advance(2)

    lines = shown(use, terminal=False).splitlines()
    assert [line.split()[1] for line in lines] == [f"{n}/20" for n in range(2, 21, 2)]
    assert re.fullmatch(r"things 2/20  \d+\.\d s", lines[0])
