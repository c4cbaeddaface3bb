"""Ctrl-C while it is held back, and after."""

import os
import signal
import threading

import pytest

from internvl_jax import interrupts


def press(which: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), which)


@pytest.fixture
def sigterm():
    before = signal.signal(signal.SIGTERM, interrupts.end_in_order)
    yield
    signal.signal(signal.SIGTERM, before)


def test_it_is_held_until_the_end_and_raised_once(ctrl_c):
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.held() as pressed:
        assert not pressed.is_set()
        press()
        press()
        done.append(pressed.is_set())
    assert done == [True]
    with interrupts.held() as pressed:
        assert not pressed.is_set()
    with pytest.raises(KeyboardInterrupt):
        press()


def test_sigterm_is_held_like_it(ctrl_c, sigterm):
    done = []
    with pytest.raises(SystemExit) as caught, interrupts.held() as pressed:
        press(signal.SIGTERM)
        done.append(pressed.is_set())
        press()
    assert done == [True] and caught.value.code == 143
    # Once more would end this process.
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_interrupt_counts_more_than_an_error(ctrl_c):
    with pytest.raises(KeyboardInterrupt) as caught, interrupts.held():
        press()
        raise ZeroDivisionError
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_another_way_of_handling_it_stays(ctrl_c):
    noted = []
    signal.signal(signal.SIGINT, lambda *_: noted.append(1))
    with interrupts.held() as pressed:
        press()
        assert noted == [1] and not pressed.is_set()


def test_in_another_thread_nothing_is_held(ctrl_c):
    before, inside = signal.getsignal(signal.SIGINT), []

    def work():
        with interrupts.held():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
