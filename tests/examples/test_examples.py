"""The scripts of examples/: networks of other libraries, resumed; bounds above the truth."""

import importlib
import re

import pytest
from commands import ROOT

pytestmark = pytest.mark.usefixtures("programs_kept")
# That of sets takes long to compile: tests/thorough/test_examples.py.
SCRIPTS = sorted({path.stem for path in (ROOT / "examples").glob("*.py")} - {"point_sets"})


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_resumes_and_its_bound_is_above_the_entropy(name, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT)
    main = importlib.import_module(f"examples.{name}").main
    main(6, tmp_path, 200)
    bound, entropy = main(12, tmp_path, 200)
    told = capsys.readouterr().out
    assert "going on from step 6" in told and f"{entropy:.4f}" in told.splitlines()[-1]
    assert bound.mean > entropy + 4 * bound.standard_error  # it has hardly been trained
    assert bound.mean < entropy + 2


def test_the_lines_of_the_documentation_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "own_data.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(block.replace("3000", "5").replace("num_steps=100", "num_steps=5"), names := {})
    assert str(names["fitted"].evaluation.total) in capsys.readouterr().out
    assert names["samples"].shape == (10, 2) and (tmp_path / "workdirs" / "own").is_dir()
