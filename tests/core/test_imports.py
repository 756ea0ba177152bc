"""What may import what: the core stands alone, and the layout's imports point one way."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ["flax", "optax", "orbax", "grain", "tensorflow_datasets", "tensorflow"]
HEAVY += ["diffrax", "equinox"]  # of vdm_jax.flow and cnf, which are imported by name

# What the parts of vdm_jax may import beside themselves; the core is each file at its top.
ALLOWED = {
    "core": set(),
    "related": {"core"},
    "nn": {"core"},
    "data": {"core"},
    "compression": {"core"},
    "train": {"core", "related"},
    "evaluation": {"core", "related", "nn", "data", "compression", "train"},
    "run": {"core", "related", "nn", "data", "compression", "train", "evaluation"},
    "experiments": {
        "core", "related", "nn", "data", "compression", "train", "evaluation", "run"
    },
}  # fmt: skip
# A name that is imported when it is asked for, where users look for it.
FRONT_DOOR = "vdm_jax.train.__init__ imports vdm_jax.run.fit"


def nodes(tree: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    """All nodes, or those that run when the module is imported: no function's, none for types."""
    for node in ast.iter_child_nodes(tree):
        of_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (at_import and (of_types or isinstance(node, ast.FunctionDef))):
            yield node
            yield from nodes(node, at_import)


def imported_modules(source: str, module: str, at_import: bool = False) -> set[str]:
    """Dotted names of all that the source of `module` imports, at any depth of its code."""
    found = set()
    for node in nodes(ast.parse(source), at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base]).rstrip(".")
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def part_of(module: str) -> str:
    """The part that a dotted name of ours belongs to."""
    names = module.split(".")
    if names[0] == "experiments":
        return "experiments"
    return names[1] if len(names) > 1 and names[1] in ALLOWED else "core"


def graph(at_import: bool = False) -> dict[str, set[str]]:
    """Each module of ours, and which others of ours it imports."""
    files = [*(ROOT / "vdm_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    found = {}
    for name, file in names.items():
        imported = imported_modules(file.read_text(), name, at_import)
        imported |= {f"{each}.__init__" for each in imported - {"vdm_jax"}}
        found[name] = (imported & names.keys()) - {name}
    return found


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


def test_imports_run_one_way():
    wrong = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if part_of(other) not in ALLOWED[part_of(module)] | {part_of(module)}
    ]
    assert wrong == [FRONT_DOOR]


def test_no_module_imports_itself_by_way_of_others():
    edges = graph(at_import=True)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " imports ".join((*above, module))
        if module not in done:
            for other in edges[module]:
                if other.rpartition(".")[0] + ".__init__" != module:  # which imports its members
                    visit(other, (*above, module))
            done.add(module)

    for module in edges:
        visit(module, ())


# Declared, but imported by tensorflow-datasets and not by us.
INDIRECT = {"importlib-resources"}


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
    for folder, where in (
        ("vdm_jax", "package"),
        ("experiments", "package"),
        ("examples", "tests"),
        ("tests", "tests"),
    ):
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
