"""Fixtures for all tests: the precision in which a test runs, and eight simulated devices."""

import os
from collections.abc import Iterator

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["VDM_JAX_CACHE"] = "off"  # nothing is kept in the user's folder, here and in commands

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_module() -> Iterator[None]:
    """Compiled programs are let go after each file: those of all tests would fill 5 GB a worker."""
    yield
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
