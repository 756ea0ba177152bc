"""Tells the processes of one run when one of them has ended, so that none waits for it for ever.

Each process writes a sign of life to the key-value store that process 0 keeps for all of them
(JAX's coordination service), and process 0 reads them; whoever stops leaves its reason there. JAX
has a watch of its own, which aborts the process and doesn't say what to do. It is set to act later
than this one; where it is first nevertheless, as process 0 is gone with its store, `on_abort` says
the rest.
"""

import contextlib
import ctypes
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

__all__ = ["LOST", "Watch", "on_abort"]

LOST = 3
"""The exit code of a process that ends because another one has."""

SHARE = 0.6
"""Of the time within which the others end, what a process may be silent."""

_kept: list[Any] = []  # what C holds a pointer to


class Watch:
    """A thread that ends this process, `me` of `count`, once another one has ended.

    Args:
      client: of JAX's coordination service.
      timeout: seconds within which a process that dies ends the others.
    """

    def __init__(self, client: Any, me: int, count: int, timeout: float) -> None:
        self.me, self.count = me, count
        self.again: Callable[[], str] = lambda: "start all processes again"
        """What to do next, said of a process that was lost."""
        self.client = client
        self._patience = SHARE * timeout
        self._every = min(max(timeout / 20.0, 0.2), 2.0)
        self._leaving = threading.Event()
        self._last_word = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def leave(self) -> None:
        """From now on process 0 may end without harm: there is nothing left to do."""
        self._leaving.set()

    def join(self) -> None:
        """Wait for the end of the watch, after `leave`."""
        self._thread.join()

    def tell(self, reason: str) -> None:
        """Let the others know that this process ends, and why; they end too.

        Returns when they know it, or have had the time.
        """
        if not self._last_word.acquire(blocking=False):
            threading.Event().wait()  # the watch is ending this process already
        self._say({f"stopped/{self.me}": f"stopped: {reason}"})

    def wait_for_word(self) -> None:
        """Give the watch the time to find out who is lost; it then ends this process."""
        time.sleep(self._patience + 3.0 * self._every)

    def lost_coordinator(self) -> NoReturn:
        """End this process as process 0 can't be reached, or, if it is that one, as JAX says so.

        JAX may be first to see that one is lost where this watch's thread gets no time to run.
        """
        other = "another process was lost or can't be reached"
        self._end("process 0, which the others hang on, was lost" if self.me else other, None)

    def together(self, seconds: float) -> bool:
        """Whether all processes come here, within so many seconds of each other."""
        until = time.monotonic() + seconds
        with contextlib.suppress(Exception):  # process 0 may have gone
            self._set(f"parting/{self.me}", "")
            while time.monotonic() < until:
                if len(self._read("parting")) == self.count:
                    return True
                time.sleep(0.05)
        return False

    # ---- the thread ----

    def _watch(self) -> None:
        heard: dict[int, tuple[str, float]] = {}
        for beat in _numbers():
            time.sleep(self._every)
            try:
                self._set(f"alive/{self.me}", f"{platform.node()} {beat}")
                stopped = self._read("stopped")
                alive = self._read("alive") if self.me == 0 else {}
            except Exception:  # of several kinds: the store is gone
                if self._leaving.is_set():
                    return
                self.lost_coordinator()
            for number, reason in stopped.items():
                self._end(f"process {number} {reason}", {})
            for number, sign in alive.items():
                if heard.get(number, ("", 0.0))[0] != sign:
                    heard[number] = sign, time.monotonic()
            for number, (sign, when) in heard.items():
                if time.monotonic() - when > self._patience:
                    self._lost(number, sign.split()[0])

    def _lost(self, number: int, host: str) -> NoReturn:
        reason = f"on {host} was lost: nothing was heard of it for {self._patience:.0f} s"
        self._end(f"process {number} {reason}", {f"stopped/{number}": reason, f"left/{number}": ""})

    def _end(self, message: str, news: dict[str, str] | None) -> NoReturn:
        """Print it, leave `news` for the others, and end, past all that waits for the lost process.

        None is for where there is no store any more.
        """
        if not self._last_word.acquire(blocking=False):
            threading.Event().wait()  # another thread is ending this process already
        print(f"error: {message}; {self.again()}", file=sys.stderr, flush=True)
        if news is not None:
            self._say(news)
        os._exit(LOST)

    def _say(self, news: dict[str, str]) -> None:
        """Leave `news` for the others. Process 0, whose store goes with it, waits for them."""
        patience = 4.0 * self._every + 1.0

        def say() -> None:
            with contextlib.suppress(Exception):  # process 0 may have gone
                for key, value in (news | {f"left/{self.me}": ""}).items():
                    self._set(key, value)
                while self.me == 0 and len(self._read("left")) < self.count:
                    time.sleep(0.05)

        # A thread that may be given up: where process 0 goes meanwhile, the call never returns.
        thread = threading.Thread(target=say, daemon=True)
        thread.start()
        thread.join(patience)

    def _set(self, key: str, value: str) -> None:
        self.client.key_value_set(f"vdm_jax/{key}", value, allow_overwrite=True)

    def _read(self, folder: str) -> dict[int, str]:
        found = self.client.key_value_dir_get(f"vdm_jax/{folder}/")
        return {int(key.rsplit("/", 1)[1]): value for key, value in found}


def on_abort(last_words: Callable[[], object] | None) -> None:
    """Call `last_words`, which must end the process, where C code aborts it; None undoes it.

    Python's own handlers don't run then: they wait for the interpreter, which abort() ends first.
    """
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    if last_words is None:
        set_handler(signal.SIGABRT, 0)  # the default
        return
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: last_words())
    _kept.append(handler)
    set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


def _numbers() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1
