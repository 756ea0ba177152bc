"""The wheel where nothing else is installed: on the oldest and the newest Python of the machine."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import vdm_jax
from vdm_jax import extras

ROOT = Path(__file__).parents[2]
NOT_COPIED = (".git", ".venv*", "workdirs", "build", "*.egg-info", "__pycache__", ".*_cache")
# Each import that needs an extra, and which.
REFUSED = {
    "vdm_jax.nn": "nn", "vdm_jax.nn.official": "nn", "vdm_jax.flow": "ode", "vdm_jax.data": "data",
    "vdm_jax.train": "train", "vdm_jax.run.fit": "train",
}  # fmt: skip


def output(*words: object, cwd: Path | None = None) -> str:
    """What a command prints, which must succeed."""
    env = os.environ | {"XLA_FLAGS": ""}  # another release of JAX need not know those of the tests
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=env, cwd=cwd)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pythons() -> dict[tuple[int, int], Path]:
    """An interpreter of each version that the package supports: of PATH, pyenv and uv."""
    places = [Path(place) for place in os.get_exec_path()]
    places += (Path.home() / ".pyenv" / "versions").glob("*/bin")
    places += (Path.home() / ".local/share/uv/python").glob("*/bin")
    found = {sys.version_info[:2]: Path(sys.executable)}
    for place in places:
        for path in place.glob("python3.*"):
            if re.fullmatch(r"python3\.\d+", path.name):
                code = "import sys, ensurepip, venv; print(*sys.version_info[:2])"
                done = subprocess.run([path, "-c", code], capture_output=True, text=True)
                if done.returncode == 0:  # pyenv's stand-ins need not run
                    found.setdefault(tuple(map(int, done.stdout.split())), path)
    return {version: path for version, path in found.items() if version >= (3, 11)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the repository, with all that must not get into it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "copy", ignore=shutil.ignore_patterns(*NOT_COPIED))
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps")
    output(*pip, "--wheel-dir", folder, folder / "copy")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module", params=["oldest", "newest"])
def installed(request, wheel, tmp_path_factory):
    """The interpreter of an empty environment in which only the wheel was installed."""
    found = pythons()
    if request.param == "newest" and len(found) == 1:
        pytest.skip("this machine has one Python")
    version = (min if request.param == "oldest" else max)(found)
    folder = tmp_path_factory.mktemp("environment")
    output(found[version], "-m", "venv", folder)
    python = folder / "bin" / "python"
    assert output(python, "-c", "import sys; print(*sys.version_info[:2])").split() == [
        *map(str, version)
    ]
    output(python, "-I", "-m", "pip", "install", "--quiet", wheel)  # -I: blind for the repository
    return python


def test_the_wheel_holds_the_package_alone_and_all_of_it(wheel):
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    about = f"vdm_jax-{vdm_jax.__version__}.dist-info/"
    files = {name for name in names if not name.startswith(about)}
    there = {*(ROOT / "vdm_jax").rglob("*.py"), *(ROOT / "vdm_jax").rglob("*.npz")}
    there |= {*(ROOT / "vdm_jax").rglob("*.mplstyle"), ROOT / "vdm_jax" / "py.typed"}
    assert files == {path.relative_to(ROOT).as_posix() for path in there}
    assert {f"{about}licenses/LICENSE", f"{about}METADATA"} <= set(names)
    assert b"\nProject-URL: Paper, https://arxiv.org/abs/" in archive.read(f"{about}METADATA")


def test_the_library_example_computes_with_the_core_alone(installed, tmp_path):
    """Its network says eps = z_t: the bound is an integral of known functions of gamma."""
    readme = (ROOT / "README.md").read_text().partition("## As a library")[2]
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    example += "print(samples.shape, samples.dtype, samples.min() >= 0, samples.max() < 256)\n"
    bound, *samples = output(installed, "-I", "-c", example, cwd=tmp_path).split(maxsplit=1)
    assert samples == ["(4, 32, 32, 3) int32 True True\n"]
    gamma = np.linspace(-13.3, 5.0, 10_001)
    var, square = 1 / (1 + np.exp(-gamma)), 1 / 3  # of the noise; of x, uniform on [-1, 1]
    error = (1 - np.sqrt(var)) ** 2 + (1 - var) * square  # E |eps - z_t|^2 for each dimension
    nats = 0.5 * np.trapezoid(error, gamma)
    nats += 0.5 * (var[-1] - 1 - np.log(var[-1]) + (1 - var[-1]) * square)
    assert abs(float(bound) / (nats / np.log(2)) - 1) < 0.02  # reconstruction is a thousandth


def test_what_needs_more_says_in_one_line_which_extra(installed, tmp_path):
    for module, extra in REFUSED.items():
        words = [str(installed), "-I", "-c", f"import {module}"]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        missing = ", ".join(extras.MODULES[extra])
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            f"ImportError: {missing}: not installed; to add what is needed: "
            f"pip install 'vdm_jax[{extra}]'"
        )


def test_a_command_says_so_too_and_their_list_needs_no_extra(installed):
    done = subprocess.run(
        [installed, "-m", "experiments.evaluate"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2 and done.stderr.splitlines() == [
        f"error: {', '.join(extras.MODULES['all'])}: not installed; to add what is needed: "
        "pip install 'vdm_jax[all]'"
    ]
    assert "python -m experiments.evaluate " in output(installed, "-m", "experiments", cwd=ROOT)


def test_a_type_checker_sees_the_types(installed, tmp_path):
    """Of a package without `py.typed` it sees nothing that could be wrong."""
    (tmp_path / "own.py").write_text("from vdm_jax import loss\n\nloss.bits_per_dim(1.0)\n")
    words = ["-m", "mypy", f"--python-executable={installed}", "--cache-dir=mypy", "own.py"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=tmp_path)
    assert 'own.py:3: error: Missing positional argument "event_shape"' in done.stdout
