"""Accelerators that programs are compiled for on a machine without one."""

import fnmatch
import os
import re
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

import jax
from jax.experimental import topologies

from vdm_jax.errors import UserError


class Chip(NamedTuple):
    """One chip: the platform that compiles for it, its memory, and its clock where it counts."""

    platform: str
    memory: int  # bytes
    gigahertz: float | None  # of the cycles that the compiler estimates; None: it estimates none


# The TPUs' clocks are those of their published peaks, 275, 197, 459 and 918 TFLOP/s in bfloat16, at
# 2, 1, 2 and 4 times 2^17 operations a cycle.
CHIPS = {
    "v4": Chip("tpu", 32 << 30, 1.05),
    "v5e": Chip("tpu", 16 << 30, 1.5),
    "v5p": Chip("tpu", 95 << 30, 1.75),
    "v6e": Chip("tpu", 32 << 30, 1.75),
    "h100": Chip("cuda", 80 << 30, None),
}
EXAMPLES = "v5p:1x1x1, v5p:2x2x1, v5e:2x2, v6e:2x2, h100:1"

# What the compiler of an H100 has to know of it (XLA's GpuTargetConfigProto).
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 9 patch: 0 }
"""


class Target(NamedTuple):
    """So many chips of one kind, as `v5p:2x2x1`."""

    name: str
    chip: Chip
    devices: Sequence[jax.Device]

    @property
    def options(self) -> dict[str, str | bool | int]:
        """The compiler's options: on a GPU nothing is timed, as there is none."""
        if self.chip.platform == "tpu":
            return {}
        return {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def find(name: str) -> Target:
    """Returns the target of a name. Raises UserError unless its compiler is here and knows it."""
    kind, _, size = name.partition(":")
    chip = CHIPS.get(kind)
    wanted = r"[1-9]\d*" if chip and chip.platform == "cuda" else r"[1-9]\d*(x[1-9]\d*){1,2}"
    if chip is None or not re.fullmatch(wanted, size):
        raise UserError(f"--target={name}: wanted one such as {EXAMPLES}")
    try:
        made = _tpu(name, size) if chip.platform == "tpu" else _cuda(int(size))
    except UserError:
        raise
    except Exception as error:  # the compilers raise several kinds
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--target={name}: its compiler says: {said}") from error
    return Target(name, chip, made.devices)


def _tpu(name: str, size: str) -> topologies.TopologyDescription:
    _check("libtpu", "tpu", name)
    # Without these libtpu looks for a TPU, and waits for a server that describes it.
    settings = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    settings |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5p-8"}
    os.environ |= settings | dict(os.environ)
    single = {"chips_per_host_bounds": [1, 1, 1]} if set(size) == {"1", "x"} else {}
    return topologies.get_topology_desc(name, "tpu", **single)


def _cuda(count: int) -> topologies.TopologyDescription:
    _check("jax-cuda12-plugin", "cuda12", f"h100:{count}")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # it asks a driver, if any
    given = {"target_config": _H100, "topology": f"1x1x{count}"}
    return topologies.get_topology_desc("h100", "cuda", **given)


def _check(package: str, extra: str, name: str) -> None:
    """Raises UserError unless the compiler is installed, in a version that this JAX asks for."""
    wanted = asked(metadata.requires("jax") or [], package, extra)
    how = f"make compile TARGET={name} installs it into a folder of its own"
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise UserError(f"--target={name} needs {package} {wanted}: {how}") from None
    if wanted and not fnmatch.fnmatch(found, wanted):
        said = f"{package} is {found}, but jax {jax.__version__} wants {wanted}"
        raise UserError(f"--target={name}: {said}: {how}")


def asked(requirements: Sequence[str], package: str, extra: str) -> str:
    """Returns the version, or its pattern, that an extra of a package asks for; "" for any."""
    pattern = rf"{package}(?:\[.*\])?[<=]=([\d.*]+).*extra == .{extra}.$"
    found = (re.match(pattern, line) for line in requirements)
    return next((match[1] for match in found if match), "")
