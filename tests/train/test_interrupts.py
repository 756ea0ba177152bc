"""Ctrl-C and the signals that end a job, where they can do no harm; sent here themselves."""

import concurrent.futures
import os
import signal

import jax
import pytest

from vdm_jax import signals
from vdm_jax.train import sharding
from vdm_jax.train.interrupts import Stop, Stopped

SIGNALS = (signal.SIGINT, *signals.ENDING)


def test_in_another_thread_nothing_is_caught(stop):
    def work():
        with stop.noted(print), signals.deferred():
            return signal.getsignal(signal.SIGINT)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert pool.submit(work).result() is signal.default_int_handler


@pytest.fixture(autouse=True)
def before():
    """Python's own handlers are in force before and after a test."""
    old = [signal.signal(number, signal.default_int_handler) for number in SIGNALS]
    yield
    now = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in zip(SIGNALS, old, strict=True):
        signal.signal(number, handler)
    assert now == [signal.default_int_handler] * len(SIGNALS)


@pytest.fixture
def stop():
    return Stop(sharding.make_mesh(jax.devices()[:1]))


def press():
    """Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_said_at_once_and_raised_where_it_is_asked_for(stop, number):
    assert not issubclass(Stopped, Exception)  # nothing that survives errors swallows it
    said = []
    with stop.noted(said.append):
        stop.check()  # nothing was sent
        vote = stop.vote()
        signal.raise_signal(number)
        assert [line.split(":")[0] for line in said] == [signal.Signals(number).name]
        assert ("again to stop at once" in said[0]) == (number == signal.SIGINT)
        with pytest.raises(Stopped) as stopped:
            stop.check()
        assert stopped.value.number == number
        with pytest.raises(Stopped):
            stop.heed(vote)  # of a single process the newest counts, not the vote


def test_the_second_ctrl_c_is_raised_at_once(stop):
    with stop.noted(print):
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


class Computing:
    """An array that is there when it was asked for the third time; at the second it acts."""

    def __init__(self, act=lambda: None):
        self.asked, self.waited, self.act = 0, False, act

    def is_ready(self):
        self.asked += 1
        if self.asked == 2:
            self.act()
        return self.asked > 2

    def block_until_ready(self):
        self.waited = True
        return self


def test_a_long_computation_is_waited_for_and_can_be_left(stop):
    done = Computing()
    stop.wait_for([done, done])
    assert done.asked >= 3 and done.waited
    left = Computing(press)
    with stop.noted(lambda text: None), pytest.raises(Stopped):
        stop.wait_for(left)
    assert left.asked == 2 and not left.waited


def test_pressed_within_a_save_it_is_noted_after_the_save(stop):
    """`deferred` within `noted`, as in a run: it counts as the first, and never gets lost."""
    said = []
    with stop.noted(said.append):
        with signals.deferred():
            press()
            press()  # the impatient user's second doesn't break the save either
            assert not said
        assert len(said) == 1
        with pytest.raises(Stopped):
            stop.check()
    with pytest.raises(KeyboardInterrupt), signals.deferred():
        press()


def test_where_it_is_ignored_it_stays_ignored(stop):
    """A shell ignores it for what it starts in the background: a run there must not hear it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop.noted(print), signals.deferred():
            press()
            press()
            stop.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_what_is_printed_to_a_terminal_that_has_closed_goes_nowhere():
    terminal, ours = os.openpty()
    kept = os.dup(1)
    try:
        os.dup2(ours, 1)
        signals.hush()
        os.write(1, b"read")
        assert b"".join(os.read(terminal, 1) for _ in b"\rread") == b"\rread"  # it is open
        os.close(terminal)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(1, b"lost")
        signals.hush()
        assert os.write(1, b"lost") == 4
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(ours)
