"""Fixtures for all tests: the precision in which a test runs, and eight simulated devices.

Most of the tests' time is compiling thousands of small programs that run once. So they are compiled
with few optimisations, which takes a third of the time, and those that two tests share only once.
`make test-optimised` has them compiled as a user's are.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# The commands that tests run have these too (tests/experiments/commands.py).
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("VDM_JAX_TESTS_XLA_FLAGS", QUICK)
os.environ["XLA_FLAGS"] = (
    f"{os.environ['VDM_JAX_TESTS_XLA_FLAGS']} --xla_force_host_platform_device_count=8"
)
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Of tests and the commands that they run, for this session alone.
    os.environ["VDM_JAX_TESTS_CACHE"] = tempfile.mkdtemp(prefix="vdm_jax-compiled-")
    atexit.register(shutil.rmtree, os.environ["VDM_JAX_TESTS_CACHE"], ignore_errors=True)
os.environ["VDM_JAX_CACHE"] = os.environ["VDM_JAX_TESTS_CACHE"]

import jax
import pytest

from experiments import cache

cache.switch_on()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
os.environ["VDM_JAX_CACHE"] = "off"  # what a test calls itself leaves these settings alone


@pytest.fixture(scope="module", autouse=True)
def _programs_of_a_few_files() -> Iterator[None]:
    """Compiled programs are let go once a worker is large: those of all tests fill 5 GB."""
    yield
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.is_file() else 0
    if pages * os.sysconf("SC_PAGESIZE") > 3 * 2**30:
        jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """Run one test with 64-bit types enabled; the former setting returns afterwards."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run one test twice: with JAX's default types, and with 64-bit types enabled."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param
