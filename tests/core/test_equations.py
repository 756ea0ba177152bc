"""docs/equations.md names functions and tests that exist."""

import ast
import functools
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "equations.md").read_text()


@functools.cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_named_in_the_table_of_equations_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 40
    missing = []
    for file, name in named:
        path = ROOT / file if "/" in file else ROOT / "tests" / "core" / file
        if name not in functions(path):
            missing.append(f"{file}::{name}")
    assert missing == []


def test_every_function_named_in_the_table_of_equations_exists():
    rows = [line for line in TEXT.splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`((?:\w+\.)+\w+)`", row)}
    assert len(named) > 20
    for name in sorted(named):
        module, _, attribute = name.partition(".")
        if module in ("nn", "train", "related", "evaluation", "run", "compression"):
            inner, _, attribute = attribute.partition(".")
            module = f"{module}.{inner}"
        target = importlib.import_module(f"vdm_jax.{module}")
        for part in attribute.split("."):
            target = getattr(target, part)
        assert callable(target), name
