"""The scripts of examples/: networks of four kinds, resumed; their bounds are above the truth."""

import importlib

import pytest
from commands import ROOT

SCRIPTS = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_resumes_and_its_bound_is_above_the_entropy(name, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT)
    main = importlib.import_module(f"examples.{name}").main
    main(6, tmp_path)
    bound, entropy = main(12, tmp_path)
    told = capsys.readouterr().out
    assert "going on from step 6" in told and f"{entropy:.4f}" in told.splitlines()[-1]
    assert bound.mean > entropy + 4 * bound.standard_error  # it has hardly been trained
    assert bound.mean < entropy + 2
