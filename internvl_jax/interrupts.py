"""Ctrl-C and SIGTERM, held back where they would leave threads at work or a folder half removed."""

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from typing import NoReturn

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit codes, as shells have them


def end_in_order(number: int, frame: types.FrameType | None) -> NoReturn:
    """A handler of SIGTERM: what is half done is tidied up by the way, as after Ctrl-C. Once more ends at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(TERMINATED)


def leave(code: int) -> NoReturn:
    """Says why, and ends at once: libraries' threads may wait for minutes (orbax: 5) for what no longer comes."""
    print({INTERRUPTED: "interrupted", TERMINATED: "terminated"}[code], file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: end_in_order}


@contextlib.contextmanager
def held() -> Iterator[threading.Event]:
    """Inside, Ctrl-C only sets the event that this yields; on leaving it raises KeyboardInterrupt, once. So with
    SIGTERM and SystemExit, where `end_in_order` handles it.

    Python raises them between any two operations of the main thread, also while that takes a lock or starts a thread.
    Other threads get none, and whoever handles a signal in a way of their own goes on doing so.
    """
    pressed, came = threading.Event(), list[int]()
    ours = threading.current_thread() is threading.main_thread()
    mine = [each for each, handler in _HANDLERS.items() if ours and signal.getsignal(each) is handler]

    def note(number: int, frame: types.FrameType | None) -> None:
        came.append(number)
        pressed.set()
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)

    for each in mine:
        signal.signal(each, note)
    try:
        yield pressed
    finally:
        for each in mine:
            signal.signal(each, _HANDLERS[each])
        if came:
            _HANDLERS[signal.Signals(came[0])](came[0], None)
