"""The README's Python blocks run as they stand, but for fewer images."""

import re

import numpy as np
from commands import ROOT


def test_the_python_blocks_run_one_after_the_other(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(block.replace("(64, 32, 32, 3)", "(4, 32, 32, 3)"), names)
    assert float(capsys.readouterr().out) > 0
    assert names["samples"].shape == (4, 32, 32, 3)
    assert np.isfinite(names["terms"].total).all()
