"""The memory that a compiled step needs on each device, and what a device has."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from vdm_jax.errors import UserError


class Room(NamedTuple):
    """The memory of one device, in bytes."""

    free: int  # a step that needs more may fail, or be slow
    most: int  # a step that needs more fails


def need(compiled: jax.stages.Compiled, device: jax.Device) -> int | None:
    """Returns the bytes on each device like `device`, without the program; None if not known."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    if device.platform != "cpu" and found.peak_memory_in_bytes:
        return int(found.peak_memory_in_bytes)
    # A CPU's peak is too low: it is 4 MiB for arguments and temporaries of 4 MiB each.
    own = found.argument_size_in_bytes - found.alias_size_in_bytes  # outputs share the latter
    return int(own + found.temp_size_in_bytes + found.output_size_in_bytes)


def room(device: jax.Device, meminfo: Path = Path("/proc/meminfo")) -> Room | None:
    """Returns a device's limit, or a CPU's equal share of what this machine has, if known."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is not None:
        return Room(int(limit), int(limit))
    if device.platform != "cpu" or not meminfo.is_file():
        return None
    lines = (line.split() for line in meminfo.read_text(encoding="utf-8").splitlines())
    kib = {name: int(value) for name, value, *_ in lines}
    share, most = 1024 / jax.local_device_count("cpu"), kib["MemTotal:"] + kib["SwapTotal:"]
    return Room(int(kib["MemAvailable:"] * share), int(most * share))


def words(size: int) -> str:
    """Returns bytes in GiB, or below a tenth of one in MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:.1f} MiB"


def lower_batch(size: int) -> Callable[[str], UserError]:
    """Returns what a command with --batch_size says, for `exhausted`."""
    return lambda said: UserError(f"out of memory ({said}): lower --batch_size, now {size}")


@contextlib.contextmanager
def exhausted(instead: Callable[[str], Exception]) -> Iterator[None]:
    """Raises `instead(what it says)` where the runtime or NumPy runs out of memory in the block."""
    try:
        yield
    except MemoryError as error:
        raise instead(str(error) or "no memory left") from error
    except jax.errors.JaxRuntimeError as error:
        said = str(error).strip().splitlines()[0]
        if not said.startswith("RESOURCE_EXHAUSTED"):
            raise
        raise instead(said.removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")[:200]) from error
