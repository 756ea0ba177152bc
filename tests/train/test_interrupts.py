"""Ctrl-C where it can do no harm; pressed here as a terminal does, by the signal."""

import signal
import threading

import pytest

from vdm_jax.train import interrupts


@pytest.fixture(autouse=True)
def before():
    """Python's own handler is in force before and after a test."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    now = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, old)
    assert now is signal.default_int_handler


def press():
    """Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


def test_the_first_is_said_at_once_and_raised_where_it_is_asked_for():
    said = []
    with interrupts.noted(said.append) as check:
        check()  # nothing was pressed
        press()
        assert said == ["stopping after this step; press Ctrl-C again to stop at once"]
        with pytest.raises(KeyboardInterrupt):
            check()


def test_the_second_is_raised_at_once():
    said = []
    with interrupts.noted(said.append):
        press()
        with pytest.raises(KeyboardInterrupt):
            press()
    assert len(said) == 1


def test_the_handler_is_that_of_before_also_behind_an_error():
    with interrupts.noted(print):
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ZeroDivisionError), interrupts.noted(print):
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        press()


def test_pressed_within_a_save_it_is_noted_behind_the_save():
    """`deferred` within `noted`, as in a run: it counts as the first, and never gets lost."""
    said = []
    with interrupts.noted(said.append) as check:
        with interrupts.deferred():
            press()
            press()  # the impatient user's second doesn't break the save either
            assert not said
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            check()


def test_deferred_it_is_raised_also_behind_an_error_of_the_block():
    def block():
        with interrupts.deferred():
            press()
            raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt) as raised:
        block()
    assert isinstance(raised.value.__context__, ZeroDivisionError)


def test_where_it_is_ignored_it_stays_ignored():
    """A shell ignores it for what it starts in the background: a run there must not hear it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.noted(print) as check, interrupts.deferred():
            press()
            press()
            check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_in_another_thread_nothing_is_caught():
    found = []

    def work():
        with interrupts.noted(print) as check, interrupts.deferred():
            found.append(signal.getsignal(signal.SIGINT))
            check()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
