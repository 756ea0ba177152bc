"""What may import what: the core stands alone, and the layout's imports point one way."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ["flax", "optax", "orbax", "grain", "tensorflow_datasets", "tensorflow"]
HEAVY += ["diffrax", "equinox"]  # of vdm_jax.flow and cnf, which are imported by name

# A module of the core may import those of a lower rank only.
RANKS = [
    {"types"},
    {"checks"},
    {"gaussian", "schedule", "divergence", "control", "twosample"},
    {"process", "bernoulli"},
    {"parameterization", "mixture", "pixels", "timestep", "ode"},
    {"loss", "sampler", "spacing"},
    {"bounds", "binomial", "cnf", "hierarchy", "solvers"},
    {"flow"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
PACKAGES = {"nn", "train", "data", "compression"}


def imported_modules(source: str, module: str) -> set[str]:
    """Dotted names of all that the source of `module` imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base]).rstrip(".")
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def parts_of_package(path: Path) -> set[str]:
    """The members of vdm_jax (types, nn, ...) that a file imports; "experiments" if it does."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    names = imported_modules(path.read_text(), module)
    inside = {n.split(".")[1] for n in names if n.startswith("vdm_jax.")}
    return inside | {"experiments" for n in names if n.split(".")[0] == "experiments"}


def test_import_finder_sees_every_form_of_import():
    source = """
import vdm_jax.nn.unet
from vdm_jax import data as d
def later():
    from ..train import step
    from . import gaussian
"""
    assert imported_modules(source, "vdm_jax.loss.inner") == {
        "vdm_jax.nn.unet",
        "vdm_jax",
        "vdm_jax.data",
        "vdm_jax.train",
        "vdm_jax.train.step",
        "vdm_jax.loss",
        "vdm_jax.loss.gaussian",
    }


def test_importing_the_package_imports_nothing_heavier_than_jax():
    code = (
        "import sys, vdm_jax\n"
        "assert vdm_jax.loss.elbo and vdm_jax.sampler.ancestral and vdm_jax.Gaussian\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_every_module_of_the_core_has_a_rank():
    modules = {path.stem for path in (ROOT / "vdm_jax").glob("*.py")} - {"__init__"}
    assert modules == set(RANK)


@pytest.mark.parametrize("name", sorted(RANK))
def test_core_modules_import_only_lower_ones(name):
    imported = parts_of_package(ROOT / "vdm_jax" / f"{name}.py")
    allowed = {other for other in RANK if RANK[other] < RANK[name]}
    assert imported <= allowed


def test_the_package_itself_imports_only_the_core():
    imported = parts_of_package(ROOT / "vdm_jax" / "__init__.py")
    assert imported <= set(RANK)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_networks_training_and_data_import_the_core_and_themselves_only(package):
    files = sorted((ROOT / "vdm_jax" / package).rglob("*.py"))
    assert files
    foreign = (PACKAGES - {package}) | {"experiments"}
    offenders = {str(f.relative_to(ROOT)): parts_of_package(f) & foreign for f in files}
    assert {f: names for f, names in offenders.items() if names} == {}


# Declared, but imported by tensorflow-datasets and not by us.
INDIRECT = {"importlib-resources", "array-record"}


def distributions(requirements: list[str]) -> set[str]:
    """Names of distributions, as pip compares them."""
    names = {re.match(r"[A-Za-z0-9._-]+", each).group() for each in requirements}
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for_users = distributions(project["dependencies"])
    for_tests = distributions(project["optional-dependencies"]["dev"])
    known = importlib.metadata.packages_distributions()
    imported = {"package": set(), "tests": set()}
    for folder, where in (("vdm_jax", "package"), ("experiments", "package"), ("tests", "tests")):
        own = {"vdm_jax", "experiments"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
        for path in (ROOT / folder).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            names = {n.split(".")[0] for n in imported_modules(path.read_text(), module) if n}
            imported[where] |= names - own - set(sys.stdlib_module_names)
    providers = {
        where: [distributions(known.get(name, [name])) for name in names]
        for where, names in imported.items()
    }
    assert [each for each in providers["package"] if not each & for_users] == []
    assert [each for each in providers["tests"] if not each & (for_users | for_tests)] == []
    assert for_users - set().union(*providers["package"]) == INDIRECT
    tools = {"pytest-xdist", "ruff", "mypy"}  # run, not imported
    assert for_tests - set().union(*providers["tests"]) == tools
