"""Signals within a block: Ctrl-C and SIGTERM deferred to its end, or handled in another way."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM take effect at the end of the block."""
    sent: list[int] = []

    def note(number: int, frame: object) -> None:
        sent.append(number)

    try:
        with handler(signal.SIGINT, note), handler(signal.SIGTERM, note):
            yield
    finally:
        if sent:
            signal.raise_signal(sent[0])


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
