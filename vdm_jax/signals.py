"""Signals within a block: Ctrl-C and those that end a job deferred to its end, or handled."""

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterable, Iterator

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Signals by which a batch system, or a terminal that closes, says that a job is to end."""


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets Ctrl-C and the signals that end a job take effect at the end of the block."""
    sent: list[int] = []

    def note(number: int, frame: object) -> None:
        sent.append(number)

    try:
        with handlers((signal.SIGINT, *ENDING), note):
            yield
    finally:
        if sent:
            signal.raise_signal(sent[0])


@contextlib.contextmanager
def handlers(numbers: Iterable[int], handle: Callable[[int, object], None]) -> Iterator[None]:
    """Handles several signals within the block, as `handler` does."""
    with contextlib.ExitStack() as stack:
        for number in numbers:
            stack.enter_context(handler(number, handle))
        yield


@contextlib.contextmanager
def handler(number: int, handle: Callable[[int, object], None]) -> Iterator[None]:
    """Handles signal `number` within the block, if this thread hears it and nobody ignores it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal reaches it
        return
    if signal.getsignal(number) in (signal.SIG_IGN, None):
        yield  # ignored, as shells have it for what runs in the background; or not Python's
        return
    before = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before)


def hush() -> None:
    """Lets what is printed go nowhere if the terminal has closed, as each print would fail."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if not stat.S_ISCHR(os.fstat(number).st_mode):
                continue
        try:
            os.write(number, b"\r")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
