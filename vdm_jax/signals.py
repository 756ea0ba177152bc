"""Signals within a block: Ctrl-C and those that end a job deferred to its end, or handled."""

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Signals by which a batch system, or a terminal that closes, says that a job is to end."""


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets Ctrl-C and the signals that end a job take effect at the end of the block."""
    sent: list[int] = []
    try:
        with handlers((signal.SIGINT, *ENDING), lambda number, _: sent.append(number)):
            yield
    finally:
        if sent:
            signal.raise_signal(sent[0])


@contextlib.contextmanager
def handlers(numbers: Iterable[int], handle: Callable[[int, object], None]) -> Iterator[None]:
    """Handles those signals within the block that this thread hears and nobody ignores."""
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():  # the one that hears any
            for number in numbers:
                # Shells ignore some for what runs in the background; None is a handler in C.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, handle)
        yield
    finally:
        for number, handler in reversed(before.items()):  # Ctrl-C, if there, comes last
            signal.signal(number, handler)


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
