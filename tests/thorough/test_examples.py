"""The scripts of examples/ at their full length: each bound comes near the truth."""

import importlib

import pytest
from commands import ROOT


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "examples").glob("*.py")))
def test_a_trained_example_comes_near_the_entropy(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    bound, entropy = importlib.import_module(f"examples.{name}").main()
    assert abs(bound.mean - entropy) < 0.08 + 4 * bound.standard_error
    assert bound.mean > entropy - 4 * bound.standard_error
