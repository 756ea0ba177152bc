"""Fixtures for all tests: the precision in which a test runs, and the simulated devices."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# The Makefile says how many devices are simulated, and how programs are compiled.
os.environ.setdefault("VDM_JAX_TESTS_DEVICES", "2")
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={os.environ['VDM_JAX_TESTS_DEVICES']} "
    f"{os.environ.get('VDM_JAX_TESTS_XLA_FLAGS', '')}"
)
# XLA on a CPU splits a convolution's sums among its threads, of which it starts one for each core
# or device: this makes them as many in every process, or runs would differ in their last bits.
os.environ["NPROC"] = os.environ["VDM_JAX_TESTS_DEVICES"]
os.environ["VDM_JAX_CACHE"] = "off"  # nothing is kept in the user's folder
# Nobody reads in a compiled program where its operations come from, and to write it takes a while.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
if "PYTEST_XDIST_WORKER" not in os.environ:
    # The commands that tests run share what they compile, for this session alone: most of the time
    # of a run of seconds (tests/commands.py).
    os.environ["VDM_JAX_TESTS_CACHE"] = tempfile.mkdtemp(prefix="vdm_jax-compiled-")
    atexit.register(shutil.rmtree, os.environ["VDM_JAX_TESTS_CACHE"], ignore_errors=True)

import jax
import pytest
from shared_runs import (  # noqa: F401
    compiled_once,
    digits_file,
    digits_run,
    digits_vdm,
    programs_kept,
)


@pytest.fixture(scope="module", autouse=True)
def _programs_of_a_few_files() -> Iterator[None]:
    """Compiled programs are let go once a worker is large: those of all tests fill 5 GB."""
    yield
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.is_file() else 0
    if pages * os.sysconf("SC_PAGESIZE") > 3 * 2**30:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _settings_stay() -> Iterator[None]:
    """What a test changes of JAX's settings would change those that its worker runs later."""
    before = dict(jax.config.values)
    yield
    assert dict(jax.config.values) == before


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
