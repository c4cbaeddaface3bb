"""Ctrl-C, held back where it would leave threads at work or a folder half removed."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def held() -> Iterator[threading.Event]:
    """Inside, Ctrl-C only sets the event that this yields; on leaving it raises KeyboardInterrupt, once.

    Python raises it between any two operations of the main thread, also while that takes a lock or starts a thread.
    Other threads get none, and whoever handles SIGINT in a way of their own goes on doing so.
    """
    pressed = threading.Event()
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pressed
        return
    signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if pressed.is_set():
            raise KeyboardInterrupt
