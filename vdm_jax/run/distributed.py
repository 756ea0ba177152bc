"""Several processes that are one run: how they find one another, and what all must have alike."""

import hashlib
import itertools
import json
import os
import platform
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import flags
from jax._src import distributed  # for its client: the public module only starts and ends it

import vdm_jax
from vdm_jax.errors import UserError
from vdm_jax.run import rendezvous
from vdm_jax.run.watch import Watch, on_abort
from vdm_jax.train.settings import differences

__all__ = [
    "agree",
    "announce",
    "check_shared",
    "finish",
    "if_lost",
    "in_turn",
    "joined",
    "of_first",
    "part",
    "start",
]

T = TypeVar("T")

PART_S = 5.0  # by which processes that stop together may be apart
DAY_MS = 24 * 3600 * 1000  # waits this long end sooner, by the watch
# What JAX's collectives and its service, and Orbax, say when another process is gone.
COMMUNICATION = re.compile(
    r"gloo|nccl|connection|unavailable|deadline|coordination|barrier|heartbeat", re.IGNORECASE
)

_watch: Watch | None = None
_numbers = itertools.count()


def start(values: flags.FlagValues) -> None:
    """Join the other processes, if the flags say that there are any.

    Must be called before JAX looks for devices. From then on only process 0 writes to the standard
    output. Raises UserError for flags that don't go together and where the others aren't found.
    """
    global _watch
    timeout = rendezvous.join(values)
    if timeout is None:
        return
    state = distributed.global_state
    watch = _watch = Watch(state.client, state.process_id, state.num_processes, timeout)
    on_abort(watch.lost_coordinator)
    watch.start()
    if watch.me:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    versions = {"jax": jax.__version__, "code": _code()}
    agree({"num_processes": watch.count, **versions})


def joined() -> bool:
    """Whether this is one of several processes."""
    return _watch is not None


def finish() -> None:
    """Wait until all processes have come here, and part."""
    global _watch
    if _watch is not None:
        _watch.leave()
        jax.distributed.shutdown()
        _watch.join()
        on_abort(None)
        _watch = None


def part(reason: str) -> None:
    """Before this process ends as it was asked to: with all others, or telling them."""
    if _watch is not None:
        if _watch.together(PART_S):
            finish()
        else:
            _watch.tell(reason)


def announce(message: str) -> None:
    """Before this process ends for an error, of which `message` tells: the others end too.

    Where the error being handled shows that another one is lost, leave it to the watch to say so.
    """
    if _watch is None:
        return
    error = sys.exception()
    if error is not None and _of_communication(error):
        _watch.wait_for_word()
    if error is not None and not isinstance(error, UserError | KeyboardInterrupt):
        traceback.print_exception(error)
    _watch.tell(message)


def if_lost(again: Callable[[], str]) -> None:
    """Say `again()`, what to do next, where a process is lost."""
    if _watch is not None:
        _watch.again = again


def agree(mine: Mapping[str, Any], may_differ: tuple[str, ...] = ()) -> None:
    """Raise UserError unless process 0 has the same, but for the dotted names in `may_differ`."""
    theirs = of_first(mine)
    for name, said in differences(theirs, json.loads(json.dumps(mine))):
        if name not in may_differ:
            raise UserError(
                f"{_here()} differs from process 0 ({said} here); start all with the same "
                "settings, data and code"
            )


def of_first(mine: T) -> T:
    """What process 0 gives here, as JSON."""
    if _watch is None or _watch.count == 1:
        return mine
    client, key = _watch.client, _name("value")
    if _watch.me == 0:
        client.key_value_set(key, json.dumps(mine))
        return mine
    theirs: T = json.loads(client.blocking_key_value_get(key, DAY_MS))
    return theirs


def in_turn(work: Callable[[], T]) -> T:
    """`work()` in process 0, then in the first process of each other machine, then in the rest.

    So what the first leaves on disk the others find there, be the disk shared or not.
    """
    if _watch is None:
        return work()
    client, host, name = _watch.client, platform.node(), _name("hosts")
    client.key_value_set(f"{name}/{_watch.me:08d}", host)
    _barrier()
    hosts = [value for _, value in sorted(client.key_value_dir_get(f"{name}/"))]
    mine = 0 if _watch.me == 0 else 1 if hosts.index(host) == _watch.me else 2
    result: list[T] = []
    for turn in range(3):
        if turn == mine:
            result.append(work())
        _barrier()
    return result[0]


def check_shared(folder: Path, flag: str) -> None:
    """Raise UserError unless all processes see the folder of process 0."""
    if _watch is None:
        return
    mark = folder / of_first(f".shared-{uuid.uuid4().hex}")
    if _watch.me == 0:
        mark.touch()
    until = time.monotonic() + 5.0  # network file systems show new files late
    while not mark.exists():
        if time.monotonic() > until:
            raise UserError(
                f"{_here()} sees another folder than process 0: --{flag}={folder} must lie on a "
                "disk that all share"
            )
        time.sleep(0.2)
    _barrier()
    if _watch.me == 0:
        mark.unlink()


def _name(what: str) -> str:
    """A key that is new: all processes come by here equally often."""
    return f"vdm_jax/{what}-{next(_numbers)}"


def _barrier() -> None:
    assert _watch is not None
    _watch.client.wait_at_barrier(_name("barrier"), DAY_MS)


def _here() -> str:
    assert _watch is not None
    return f"process {_watch.me} on {platform.node()}"


def _of_communication(error: BaseException | None) -> bool:
    """Whether the error, or what caused it, may come of a process that is gone."""
    while error is not None:
        if not isinstance(error, UserError) and COMMUNICATION.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _code() -> str:
    """A short name for the code as it is."""
    digest = hashlib.sha256()
    for package in (Path(__file__).parent, Path(vdm_jax.__file__).parent):
        for file in sorted(package.rglob("*.py")):
            digest.update(file.relative_to(package.parent).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
