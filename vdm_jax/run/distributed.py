"""Several processes that are one run: how they find one another, and what all must have alike.

JAX's own service watches over them: where one is lost it ends the others within --peer_timeout.
Between CPUs a collective fails at once when a process ends, and `lost` recognises that.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import platform
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from jax.experimental import multihost_utils

import vdm_jax
from vdm_jax.errors import UserError
from vdm_jax.train.record import CheckpointError, differences

T = TypeVar("T")

FLAGS = ("distributed", "coordinator", "num_processes", "process_id", "peer_timeout")
LOST = 3  # exit code of a process that ends because another one has
TIMEOUT_S = 60  # --peer_timeout
PART_S = 5  # by which processes that stop together may be apart
DAY_S = 24 * 3600  # while process 0 prepares the data
# Words of JAX's collectives and its service, and of Orbax, when another process is gone.
GONE = re.compile("(?i)gloo|nccl|connection|unavailable|deadline|coordination|barrier|heartbeat")

_again: Callable[[], str] = lambda: "start all processes again"  # noqa: E731
_numbers = itertools.count()
_held: list[socket.socket] = []


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of a command that may run in several processes."""
    about = "one of several processes, which SLURM, Open MPI, Kubernetes or a Cloud TPU started"
    flags.DEFINE_bool("distributed", False, about, flag_values=values)
    about = "or HOST:PORT of process 0, where the others find it"
    flags.DEFINE_string("coordinator", None, about, flag_values=values)
    for name, about, low, high in (
        ("num_processes", "with --coordinator: how many there are", 1, None),
        ("process_id", "with --coordinator: which one this is, from 0", 0, None),
        ("peer_timeout", f"most seconds to wait for the others; default {TIMEOUT_S}", 5, 3600),
    ):
        flags.DEFINE_integer(name, None, about, low, high, flag_values=values)


def start(values: flags.FlagValues) -> None:
    """Joins the other processes, if the flags say that there are any.

    Must be called before JAX looks for devices. From then on only process 0 writes to stdout.
    """
    address, count, me = values.coordinator, values.num_processes, values.process_id
    given = [name for name in FLAGS[1:4] if values[name].value is not None]
    if not values.distributed and not given:
        if values.peer_timeout is not None:
            raise UserError("--peer_timeout needs --distributed or --coordinator=HOST:PORT")
        return
    if values.distributed and given:
        raise UserError(f"--{given[0]} and --distributed exclude each other: the latter finds out")
    timeout = values.peer_timeout or TIMEOUT_S
    if given:
        if missing := [name for name in FLAGS[1:4] if name not in given]:
            wanted = "--coordinator=HOST:PORT, --num_processes and --process_id go together"
            raise UserError(f"--{missing[0]} is missing: {wanted}")
        _reach(address, count, me, timeout)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM away from the run, which has its own agreement on when to stop.
    jax.config.update("jax_enable_preemption_service", False)
    _initialize(address, count, me, timeout)
    if jax.process_index():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    agree({"jax": jax.__version__, "code": _code(), "num_processes": values.num_processes})


def joined() -> bool:
    """Returns whether this is one of several processes."""
    return bool(jax.distributed.is_initialized())


def finish() -> None:
    """Waits until all processes have come here, and parts."""
    if joined():
        jax.distributed.shutdown()


def part() -> None:
    """Parts from the others if they too come here within a few seconds."""
    with contextlib.suppress(Exception):  # of several kinds
        if joined():
            _barrier(PART_S)
            jax.distributed.shutdown()


def if_lost(again: Callable[[], str]) -> None:
    """Sets what is said of how the run goes on, where a process is lost."""
    global _again
    _again = again


def lost(error: BaseException | None) -> str | None:
    """Returns one line if the error, or what caused it, comes of a process that is gone.

    Of UserErrors only a checkpoint's may: a download that fails is a lost connection, too.
    """
    while error is not None:
        if isinstance(error, UserError) and not isinstance(error, CheckpointError):
            return None
        if not isinstance(error, UserError) and GONE.search(str(error)):
            reason = " ".join(str(error).split())[:200]
            return f"another process has ended or can't be reached ({reason}); {_again()}"
        error = error.__cause__ or error.__context__
    return None


def agree(mine: Mapping[str, Any], may_differ: tuple[str, ...] = ()) -> None:
    """Raises UserError in all processes if one differs from process 0, dotted names aside."""
    first, *others = _gather([mine, platform.node()])
    for number, (theirs, host) in enumerate(others, 1):
        for name, said in differences(first[0], theirs):
            if name not in may_differ:
                said = f"process {number} on {host} differs from process 0 ({said} there)"
                raise UserError(f"{said}; start all with the same settings, data and code")


def of_first(mine: T) -> T:
    """Returns what process 0 gives here, which JSON can hold."""
    first: T = _gather(mine)[0]
    return first


def in_turn(work: Callable[[], T]) -> T:
    """Returns `work()`, done by process 0, then by the first of each machine, then by the rest.

    So the others find what the first leaves on disk. A UserError in one is raised in all.
    """
    if not joined():
        return work()
    hosts, me = _gather(platform.node()), jax.process_index()
    mine = 0 if me == 0 else 1 if hosts.index(hosts[me]) == me else 2
    results: list[T] = []
    failure = None
    for turn in range(3):
        try:
            results += [work()] if turn == mine else []
        except UserError as error:
            failure = error
        _barrier(DAY_S)
        for number, said in enumerate(_gather(failure and str(failure))):
            if said is not None:
                raise failure or UserError(f"process {number} on {hosts[number]}: {said}")
    return results[0]


def check_shared(folder: Path, flag: str) -> None:
    """Raises UserError, in all processes, unless all see the folder of process 0."""
    if not joined():
        return
    mark = folder / of_first(f".shared-{uuid.uuid4().hex}")
    if jax.process_index() == 0:
        mark.touch()
    until = time.monotonic() + 5.0  # network file systems show new files late
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.2)
    seen = _gather([mark.exists(), platform.node()])
    if jax.process_index() == 0:
        mark.unlink()
    for number, (sees, host) in enumerate(seen):
        if not sees:
            said = f"process {number} on {host} sees another folder than process 0"
            raise UserError(f"{said}: --{flag}={folder} must lie on a disk that all share")


def _initialize(address: str | None, count: int | None, me: int | None, timeout: int) -> None:
    if me == 0:
        print(f"waiting at most {timeout} s for the other processes; if one doesn't come, JAX "
              "ends this one: DEADLINE_EXCEEDED", flush=True)  # fmt: skip
    try:
        jax.distributed.initialize(
            address, count, me, initialization_timeout=timeout, heartbeat_timeout_seconds=timeout,
            cluster_detection_method="deactivate" if address else None,
            coordinator_bind_address=address if me == 0 else None,  # else any that reaches it
        )  # fmt: skip
    except Exception as error:  # JAX raises several kinds
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "start them by SLURM, Open MPI, Kubernetes or on a Cloud TPU, or give --coordinator"
        alone = f"--distributed finds no cluster, or not all of it ({said}): {hint}"
        raise UserError(f"--coordinator={address}: {said}" if address else alone) from error


def _reach(address: str, count: int, me: int, timeout: int) -> None:
    """Raises UserError unless process 0 can listen at `address`; JAX would abort the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) < 65536:
        raise UserError(f"--coordinator={address} is no HOST:PORT, as node1:12345")
    if me >= count:
        raise UserError(f"--process_id={me} must lie in [0, {count}): --num_processes is {count}")
    to, until = (host.strip("[]"), int(port)), time.monotonic()
    try:
        family, *_, found = socket.getaddrinfo(*to)[0]
    except OSError as error:
        raise UserError(f"--coordinator={address}: there is no host {host} ({error})") from error
    _hold(f"vdm_jax {found[:2]} {me}", address, me)
    while True:
        try:
            if me == 0:
                socket.create_server(found[:2], family=family).close()
            else:
                socket.create_connection(to, timeout=max(1.0, timeout / 4)).close()
            return
        except OSError as error:
            if me == 0:
                raise UserError(f"--coordinator={address}: process 0 can't listen there "
                                f"({error.strerror}); choose another") from error  # fmt: skip
            if time.monotonic() > until + timeout:
                raise UserError(f"--coordinator={address} could not be reached for {timeout} s "
                                f"({error}): is process 0 running there?") from error  # fmt: skip
        time.sleep(0.2)


def _hold(name: str, address: str, me: int) -> None:
    """Raises UserError if another process on this machine has that number at that coordinator.

    JAX would take it for the one it knows, started again, and end the run that goes on. The name
    of Linux's that has no file goes with the process, however that ends.
    """
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(f"\0{name}")
        _held.append(held)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            said = f"--process_id={me} of --coordinator={address} runs already on this machine"
            raise UserError(f"{said}: choose another port for another run") from error


def _barrier(seconds: int) -> None:
    """Waits for all processes, at most so long, which may be longer than a collective would."""
    name = f"vdm_jax-{next(_numbers)}"  # all processes come by here equally often
    ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * seconds)


def _gather(mine: Any) -> list[Any]:
    """Returns what each process gives here, which JSON can hold."""
    text = json.dumps(mine).encode()
    if not joined():
        return [json.loads(text)]
    sizes = multihost_utils.process_allgather(np.asarray(len(text), np.int32))
    padded = np.frombuffer(text.ljust(-(-int(sizes.max()) // 1024) * 1024), np.uint8)
    return [json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)]


def _code() -> str:
    package = Path(vdm_jax.__file__).parent
    running = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        running.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return running.hexdigest()[:12]
