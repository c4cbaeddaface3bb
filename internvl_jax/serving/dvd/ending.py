"""How sockets of either side end."""

import logging
import threading

import zmq

_LINGER = 200  # milliseconds for last words
_PATIENCE = 2.0  # seconds

log = logging.getLogger(__name__)


def end_sockets(context: "zmq.Context[zmq.Socket[bytes]]", patience: float = _PATIENCE) -> None:
    """Closes all sockets of a context; last words have a moment to leave.

    Once in some ten thousand times libzmq 4.3.5 forgets that a connection has ended, whose other side left at that very
    moment, and waits for it without end. What is left of the context then ends with the process.

    Args:
      patience: how many seconds the end is waited for.
    """
    ending = threading.Thread(target=context.destroy, kwargs={"linger": _LINGER}, name="end of sockets", daemon=True)
    ending.start()
    ending.join(patience)
    if ending.is_alive():
        log.warning("sockets did not end within %g s; they are left to the end of the process", patience)
