"""Ctrl-C during training: noted at once, taking effect where nothing is left half done.

KeyboardInterrupt is raised wherever the program happens to be, in the middle of a save or in a
callback that swallows it.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

__all__ = ["deferred", "noted"]


@contextlib.contextmanager
def noted(say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Note the first Ctrl-C within the block; the second raises KeyboardInterrupt at once.

    Yields a function to be called where it is safe to stop: it raises KeyboardInterrupt if one was
    noted. `say` tells the user that it was.
    """
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        pressed.append(number)
        if len(pressed) > 1:
            raise KeyboardInterrupt
        say("stopping after this step; press Ctrl-C again to stop at once")

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    with _handler(note):
        yield check


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let Ctrl-C take effect at the end of the block."""
    pressed: list[int] = []
    try:
        with _handler(lambda number, frame: pressed.append(number)):
            yield
    finally:
        if pressed:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _handler(handle: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal reaches it
        return
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield  # ignored, as shells have it for what runs in the background; or not Python's
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
