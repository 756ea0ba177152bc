"""How the processes of one run find one another: the flags, and the start of JAX's service."""

import contextlib
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
from absl import flags

from vdm_jax.errors import UserError
from vdm_jax.run.watch import on_abort

__all__ = ["FLAGS", "define_flags", "join"]

FLAGS = ("distributed", "coordinator", "num_processes", "process_id", "peer_timeout")
TIMEOUT_S = 60
SHORTEST_S, LONGEST_S = 5, 3600


def define_flags(values: flags.FlagValues) -> None:
    """Those of a command that may run in several processes."""
    flags.DEFINE_bool(
        "distributed", False, "one of several processes, which SLURM, Open MPI, Kubernetes or a "
        "Cloud TPU started", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "coordinator", None, "or HOST:PORT of process 0, where the others find it",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "num_processes", None, "with --coordinator: how many there are", lower_bound=1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "process_id", None, "with --coordinator: which one this is, from 0", lower_bound=0,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "peer_timeout", None, "seconds to wait for the others at the start, and within which one "
        f"that dies ends the others; default {TIMEOUT_S}", lower_bound=SHORTEST_S,
        upper_bound=LONGEST_S, flag_values=values,
    )  # fmt: skip


def join(values: flags.FlagValues) -> int | None:
    """Start `jax.distributed` as the flags say; the seconds of --peer_timeout, None without it all.

    Must be called before JAX looks for devices. Raises UserError for flags that don't go together
    and where the others aren't found.
    """
    address, count, me = values.coordinator, values.num_processes, values.process_id
    explicit = {"coordinator": address, "num_processes": count, "process_id": me}
    given = [name for name, value in explicit.items() if value is not None]
    if not values.distributed and not given:
        if values.peer_timeout is not None:
            raise UserError("--peer_timeout is for several processes: give --distributed or "
                            "--coordinator too")  # fmt: skip
        return None
    if values.distributed and given:
        raise UserError(f"--{given[0]} and --distributed exclude each other: the latter finds out")
    timeout = values.peer_timeout or TIMEOUT_S
    if given:
        for name, value in explicit.items():
            if value is None:
                raise UserError(
                    f"--{name} is missing: --coordinator=HOST:PORT, --num_processes and "
                    "--process_id go together"
                )
        _check(address, count, me)
        _reach(address, me, timeout)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM away from the run, which has its own agreement on when to stop.
    jax.config.update("jax_enable_preemption_service", False)
    _initialize(address, count, me, timeout)
    return timeout


def _check(address: str, count: int, me: int) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) < 65536:
        raise UserError(f"--coordinator={address} is no HOST:PORT, as node1:12345")
    if me >= count:
        raise UserError(f"--process_id={me} must lie in [0, {count}): --num_processes is {count}")


def _reach(address: str, me: int, timeout: int) -> None:
    """That process 0 can listen at `address`, and the others find it listening there."""
    host, number = address.rsplit(":", 1)
    host, port = host.strip("[]"), int(number)
    until = time.monotonic() + timeout
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        raise UserError(f"--coordinator={address}: there is no host {host} ({error})") from error
    if me == 0:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        try:
            socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
        except OSError as error:
            raise UserError(
                f"--coordinator={address}: process 0 can't listen at that port ({error.strerror}); "
                "choose another"
            ) from error
        return
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(1.0, timeout / 4)):
                return
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"--coordinator={address} could not be reached for {timeout} s ({error}): is "
                    "process 0 running there?"
                ) from error
        time.sleep(0.2)


def _initialize(address: str | None, count: int | None, me: int | None, timeout: int) -> None:
    """`jax.distributed.initialize`, its failures as UserError."""
    who = "a process" if me is None else f"process {me} of {count}"

    def give_up(said: str) -> None:
        told = re.search(r"absl::Status: (.*)", said)
        reason = told[1].strip() if told else "JAX's runtime failed"
        print(
            f"error: {who} found not all others within {timeout} s ({reason}): each must be "
            "started with the same --num_processes and a --process_id of its own",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(2)

    try:
        with _captured(give_up):
            jax.distributed.initialize(
                address, count, me, initialization_timeout=timeout,
                heartbeat_timeout_seconds=timeout,
                cluster_detection_method=None if address is None else "deactivate",
            )  # fmt: skip
    except Exception as error:  # JAX raises several kinds
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address is None:
            raise UserError(
                f"--distributed finds no cluster, or not all of it ({said}): start the processes "
                "by SLURM, Open MPI, Kubernetes or on a Cloud TPU, or give --coordinator"
            ) from error
        raise UserError(f"--coordinator={address}: {said}") from error


@contextlib.contextmanager
def _captured(give_up: Callable[[str], None]) -> Iterator[None]:
    """Keep back what C code writes to the standard error; if it aborts, give it to `give_up`.

    Where there is no abort it is written after all.
    """
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)

        def restore() -> str:
            os.dup2(before, 2)
            file.seek(0)
            return file.read().decode(errors="replace")

        on_abort(lambda: give_up(restore()))
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.write(before, restore().encode())
            os.close(before)
            on_abort(None)
