"""The scripts of examples/ at their full length: each bound comes near the truth; sets resumed."""

import importlib

import pytest
from commands import ROOT


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "examples").glob("*.py")))
def test_a_trained_example_comes_near_the_entropy(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    bound, entropy = importlib.import_module(f"examples.{name}").main()
    assert abs(bound.mean - entropy) < 0.08 + 4 * bound.standard_error
    assert bound.mean > entropy - 4 * bound.standard_error


def test_the_example_of_sets_resumes_and_its_bound_is_above_the_entropy(
    tmp_path, monkeypatch, capsys
):
    """As the others in tests/examples."""
    monkeypatch.syspath_prepend(ROOT)
    main = importlib.import_module("examples.point_sets").main
    main(6, tmp_path, 200)
    bound, entropy = main(12, tmp_path, 200)
    assert "going on from step 6" in capsys.readouterr().out
    assert entropy + 4 * bound.standard_error < bound.mean < entropy + 2
