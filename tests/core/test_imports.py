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

from vdm_jax import extras

ROOT = Path(__file__).parents[2]

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


def test_the_core_needs_jax_alone_and_each_other_part_names_its_extra():
    absent = ["tensorflow", *extras.MODULES["all"]]
    parts = {"nn": "nn", "nn.gamma": "nn", "flow": "ode", "cnf": "ode", "data": "data"}
    parts |= {"train": "train", "train.step": "train", "run.fit": "train", "run.cli": "train"}
    parts |= {"evaluation.bound": "data", "compression.other_codecs": "data"}
    code = (
        "import importlib, sys\n"
        f"sys.modules |= dict.fromkeys({absent})\n"  # importing them fails
        "import vdm_jax, vdm_jax.compression, vdm_jax.related.hierarchy\n"
        "assert vdm_jax.loss.elbo and vdm_jax.sampler.ancestral and vdm_jax.Gaussian\n"
        f"for part in {list(parts)}:\n"
        "    try:\n"
        "        importlib.import_module(f'vdm_jax.{part}')\n"
        "    except ImportError as error:\n"
        "        print(part, error)\n"
        "sys.argv[0] = '-m'\n"  # as when `python -m experiments.NAME` imports the package
        "import experiments\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    said = "{}: not installed; to add what is needed: pip install 'vdm_jax[{}]'"
    assert result.stderr == f"error: {said.format(', '.join(extras.MODULES['all']), 'all')}\n"
    assert result.returncode == 2
    assert result.stdout.splitlines() == [
        f"{part} {said.format(', '.join(extras.MODULES[extra]), extra)}"
        for part, extra in parts.items()
    ]


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


# Whose extra declares what a part imports; that of vdm_jax.ode is "ode".
EXTRA_OF = {"nn": "nn", "data": "data", "compression": "data", "train": "train", "run": "train"}
EXTRA_OF |= {"evaluation": "core", "related": "core", "core": "core", "experiments": "all"}
# Imported by way of another extra: what of `run` needs networks imports vdm_jax.nn first.
EXCEPTIONS = {"vdm_jax.run.models imports flax"}
INDIRECT = {"importlib-resources"}  # declared, but imported by tensorflow-datasets and not by us
TOOLS = {"pytest-xdist", "ruff", "mypy"}  # run, not imported
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"vdm_jax", "experiments"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}


def distributions(requirements: list[str]) -> set[str]:
    """Names of distributions, as pip compares them."""
    names = {re.match(r"[A-Za-z0-9._-]+", each).group() for each in requirements}
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def declared(extra: str) -> tuple[set[str], set[str]]:
    """The distributions that an extra names, or "core" without one, and all that it brings."""
    requirements = {"core": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}[extra]
    own = distributions(requirements) - {"vdm-jax"}
    all_of_it = own | (declared("core")[1] if extra != "core" else set())
    for each in requirements:
        if found := re.fullmatch(r"vdm_jax\[(.*)\]", each):
            all_of_it |= set().union(*(declared(other)[1] for other in found[1].split(",")))
    return own, all_of_it


def imported_distributions(folder: str) -> dict[str, dict[str, set[str]]]:
    """Of each module below a folder, which others' modules it imports, and who provides them."""
    known, found = importlib.metadata.packages_distributions(), {}
    for path in (ROOT / folder).rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        names = {n.split(".")[0] for n in imported_modules(path.read_text(), module) if n}
        names -= OWN | set(sys.stdlib_module_names)
        found[module] = {name: distributions(known.get(name, [name])) for name in names}
    return found


def test_each_part_imports_what_its_extra_declares_and_no_extra_declares_more():
    used: dict[str, set[str]] = {}
    undeclared = set()
    for folder in ("vdm_jax", "experiments", "tests", "examples"):
        for module, names in imported_distributions(folder).items():
            extra = "ode" if module == "vdm_jax.ode" else EXTRA_OF[part_of(module)]
            extra = "dev" if folder in ("tests", "examples") else extra
            for name, providers in names.items():
                used.setdefault(extra, set()).update(providers)
                if not providers & declared(extra)[1]:
                    undeclared.add(f"{module} imports {name}")
    assert undeclared == EXCEPTIONS
    extra_names = ("core", "nn", "ode", "data", "train", "all", "dev")
    unused = {extra: declared(extra)[0] - used[extra] for extra in extra_names}
    assert set().union(*unused.values()) == INDIRECT | TOOLS
    assert unused["data"] == INDIRECT and unused["dev"] == TOOLS


def test_an_extra_is_checked_by_the_modules_that_it_installs():
    known = importlib.metadata.packages_distributions()
    for extra, names in extras.MODULES.items():
        expected = declared(extra)[1] - declared("core")[1] - {"scipy"}  # which JAX brings
        providers = [distributions(known[name]) & expected for name in names]
        assert all(len(each) == 1 for each in providers), extra
        assert set().union(*providers) == expected and len(names) == len(expected)
