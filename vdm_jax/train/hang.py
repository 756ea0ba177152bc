"""The end of a run that hangs: in a step, in its batch, or in waiting for another process."""

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from vdm_jax import files

EXIT_CODE = 4
LEAST_S, TIMES = 60.0, 10.0  # least limit if none is given, and the limit over the median
FIRST_S = 600.0  # of the first block: the other processes may still be compiling
GRACE_S = 10.0  # from the limit to the last resort
_leave = os._exit


class Watchdog:
    """Ends the process when a block lasts longer than a limit, and says where each thread was.

    The limit is `timeout` seconds or, if that is None, ten times the median of the last hundred
    blocks, a minute at least. `again` returns the words that say how the run goes on.
    """

    def __init__(self, timeout: float | None, file: Path, again: Callable[[], str]) -> None:
        self._timeout, self._file, self._again = timeout, file, again
        self._seconds: deque[float] = deque(maxlen=100)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Lets the block last no longer than the limit."""
        limit = self._limit()
        timer = threading.Timer(limit, self._end, [limit])
        timer.daemon = True
        # The last resort, where no thread of Python's can run or the file can't be written.
        faulthandler.dump_traceback_later(limit + GRACE_S, exit=True, file=2)
        began = time.monotonic()
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()
        self._seconds.append(time.monotonic() - began)

    def _limit(self) -> float:
        limit, seconds = self._timeout, self._seconds
        if limit is None:
            limit = max(LEAST_S, TIMES * statistics.median(seconds)) if seconds else LEAST_S
        return limit if seconds else max(limit, FIRST_S)

    def _end(self, limit: float) -> None:
        said = f"a step, its batch or another process was waited for longer than {limit:g} s"
        where = f"(--hang_timeout); where each thread was: {self._file}; {self._again()}"
        try:
            with files.whole(self._file) as file:
                faulthandler.dump_traceback(file)
            print(f"\nerror: {said} {where}", file=sys.stderr, flush=True)
        finally:
            _leave(EXIT_CODE)
