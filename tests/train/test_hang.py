"""A block that lasts longer than its limit ends the process, and says where each thread was."""

import contextlib
import time

import pytest

from vdm_jax.train import hang


@pytest.fixture
def left(monkeypatch):
    """The exit codes with which the process would have ended."""
    codes = []
    monkeypatch.setattr(hang, "_leave", codes.append)
    monkeypatch.setattr(hang, "FIRST_S", 0.1)
    return codes


def sleeping_step(seconds):
    time.sleep(seconds)


def test_a_step_that_hangs_leaves_its_stack_and_one_line(tmp_path, capsys, left):
    file = tmp_path / "hang-0.txt"
    watchdog = hang.Watchdog(0.05, file, lambda: "the same command goes on at 20")
    for seconds in (0.07, 0.0):  # the first may take longer: others may be compiling
        with watchdog.watched():
            sleeping_step(seconds)
    with contextlib.suppress(KeyError), watchdog.watched():
        raise KeyError
    time.sleep(0.1)
    assert left == [] and not file.exists()
    with watchdog.watched():
        sleeping_step(0.2)
    assert left == [hang.EXIT_CODE]
    assert "in sleeping_step" in file.read_text() and "in _end" in file.read_text()
    assert capsys.readouterr().err == (
        "\nerror: a step, its batch or another process was waited for longer than 0 s "
        f"(--hang_timeout); where each thread was stands in {file}; the same command goes on at 20\n"
    )


def test_a_folder_that_can_not_be_written_to_does_not_keep_it_alive(tmp_path, capsys, left):
    with hang.Watchdog(0.01, tmp_path / "gone" / "hang-0.txt", lambda: "again").watched():
        sleeping_step(0.2)
    assert left == [hang.EXIT_CODE]
    assert "hang-0.txt can't be written (No such file or directory); again" in (
        capsys.readouterr().err
    )


def test_the_limit_is_ten_times_the_median_and_a_minute_at_least(tmp_path):
    watchdog = hang.Watchdog(None, tmp_path / "hang-0.txt", lambda: "again")
    assert watchdog._limit() == hang.FIRST_S
    watchdog._seconds.extend([1.0, 2.0, 500.0])
    assert watchdog._limit() == 60.0
    watchdog._seconds.extend([7.0, 8.0])
    assert watchdog._limit() == 70.0
