"""A block that lasts longer than its limit ends the process, and says where each thread was."""

import contextlib
import subprocess
import sys
import threading
import time

import pytest

from vdm_jax.train import hang


@pytest.fixture
def left(monkeypatch):
    """The exit codes with which the process would have ended."""
    codes = []
    monkeypatch.setattr(hang, "_leave", codes.append)
    monkeypatch.setattr(hang, "FIRST_S", 3.0)
    yield codes
    for thread in threading.enumerate():  # none may fire after it, when processes really end
        if isinstance(thread, threading.Timer):
            thread.join()


def sleeping_step(seconds):
    time.sleep(seconds)


def test_a_step_that_hangs_leaves_its_stack_and_one_line(tmp_path, capsys, left):
    file = tmp_path / "hang-0.txt"
    watchdog = hang.Watchdog(0.5, file, lambda: "the same command goes on at 20")
    for seconds in (0.6, 0.0):  # the first may take longer: others may be compiling
        with watchdog.watched():
            sleeping_step(seconds)
    with contextlib.suppress(KeyError), watchdog.watched():
        raise KeyError
    time.sleep(0.6)
    assert left == [] and not file.exists()
    with watchdog.watched():
        sleeping_step(1.5)
    assert left == [hang.EXIT_CODE]
    assert "in sleeping_step" in file.read_text() and "in _end" in file.read_text()
    said = "error: a step, its batch or another process was waited for longer than 0.5 s"
    where = f"(--hang_timeout); where each thread was: {file}; the same command goes on at 20"
    assert capsys.readouterr().err == f"\n{said} {where}\n"


HOLDS_THE_LOCK = """
import ctypes, pathlib, sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("hang", sys.argv[1])
hang = module_from_spec(spec)
spec.loader.exec_module(hang)
hang.FIRST_S = hang.GRACE_S = 0.1
with hang.Watchdog(0.1, pathlib.Path(sys.argv[2]), lambda: "").watched():
    ctypes.PyDLL(None).sleep(20)
"""


def test_code_that_holds_the_interpreter_is_ended_with_the_stacks_in_the_standard_error(tmp_path):
    """A thread of Python's could do nothing there."""
    arguments = [sys.executable, "-c", HOLDS_THE_LOCK, hang.__file__, tmp_path / "hang-0.txt"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=15, check=False)
    assert done.returncode == 1 and done.stderr.startswith("Timeout (0:00:00.200000)!")
    assert 'File "<string>", line 9 in <module>' in done.stderr


def test_the_limit_is_ten_times_the_median_and_a_minute_at_least(tmp_path):
    watchdog = hang.Watchdog(None, tmp_path / "hang-0.txt", lambda: "again")
    assert watchdog._limit() == hang.FIRST_S
    watchdog._seconds.extend([1.0, 2.0, 500.0])
    assert watchdog._limit() == 60.0
    watchdog._seconds.extend([7.0, 8.0])
    assert watchdog._limit() == 70.0
