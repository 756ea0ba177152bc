"""The race: what each training took and reached is what its rows, table and figure say."""

import os
import shutil

import numpy as np
import pytest
import tiny
from commands import ROOT

from experiments.benchmarks import race
from vdm_jax.errors import UserError


def _config(**model):
    config = tiny.config()
    config.model.update(network="mlp", head="levels", **model)
    config.train.update(steps_per_call=1, batch_size=16)
    config.eval.update(repeats=1, batch_size=32)
    return config


def test_rows_table_and_figure(tmp_path, monkeypatch):
    shutil.copy(ROOT / "docs" / "photos.md", tmp_path)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(race, "MARKS", 2)
    monkeypatch.setattr(race, "_contenders", lambda: {"a": _config(), "b": _config(num_blocks=2)})
    arguments = [f"--workdir={tmp_path / 'w'}", f"--out={tmp_path}", "--minutes=0.02"]
    rows = race.race(["race", *arguments])
    assert [row["name"] for row in rows] == ["a", "a", "b", "b"]
    for first, last in (rows[:2], rows[2:]):
        assert 0 < first["step"] < last["step"] and 0 < first["seconds"] < last["seconds"]
        # The operations of a step are those of its matrix products, and little more.
        assert first["flops"] / first["step"] == last["flops"] / last["step"] > 6 * 16 * 64 * 16
        assert np.isfinite(last["bpd"]) and 0 < last["standard_error"] < 1
    assert rows[3]["flops"] / rows[3]["step"] > rows[1]["flops"] / rows[1]["step"]
    page = (tmp_path / "photos.md").read_text()
    assert f"| b | {rows[3]['seconds']:,.0f} | {rows[3]['step']:,} | " in page
    assert f" | {rows[3]['bpd']:.4f} ± {rows[3]['standard_error']:.4f} |" in page
    assert (tmp_path / "photos" / "race.png").stat().st_size > 10_000

    def trained(*_):
        raise AssertionError("what is in the folder is trained again")

    monkeypatch.setattr(race, "_trained", trained)
    assert race.race(["race", *arguments]) == rows
    with pytest.raises(UserError, match=r"is of a race of 0\.02 minutes, not 0\.04"):
        race.race(["race", *arguments[:2], "--minutes=0.04"])
