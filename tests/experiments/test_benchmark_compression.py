"""The tables of `experiments.benchmarks.compression` on a tiny run are those of the codec."""

import shutil

import numpy as np
import pytest
import vdmz
from commands import ROOT

from experiments.benchmarks import compression as benchmark
from vdm_jax.errors import UserError


@pytest.mark.usefixtures("compiled_once")
def test_tables_are_those_of_the_files(digits_run, tmp_path, capsys):
    np.save(tmp_path / "in.npy", vdmz.digits(9))
    shutil.copy(ROOT / "docs" / "compression.md", tmp_path)
    arguments = [f"--workdir={digits_run}", "--num_steps=20,19", str(tmp_path / "in.npy")]
    arguments.append(f"--out={tmp_path}")
    found = benchmark.measure(["benchmark", *arguments])
    said = capsys.readouterr().out
    for num_steps, s in zip((20, 19), found, strict=True):
        size = round(s.gross * 9 * 64 / 8)
        assert f"| {num_steps} | {size} | {s.gross:.4f} | {s.net:.4f} | {s.bound:.4f} |" in said
    best = min(s.gross for s in found)
    assert f"| VDMZ, T = {20 if best == found[0].gross else 19} | {best:.4f} |" in said
    assert "| xz | " in said
    page = (tmp_path / "compression.md").read_text()
    told = [line for line in said.splitlines() if line.startswith("|")]
    assert len(told) == 13 and all(line in page for line in told)
    assert "| 10 | 6,603 |" not in page and "| 1000 | 26,351 |" in page


@pytest.mark.parametrize("given", ["10,x", "5000"])
def test_refusals(given):
    with pytest.raises(UserError, match=f"={given}: wanted whole numbers from 1 to 4096"):
        benchmark.measure(["benchmark", f"--num_steps={given}"])
