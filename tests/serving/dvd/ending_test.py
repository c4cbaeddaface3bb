"""Sockets end, and where libzmq waits without end, nobody waits with it."""

import threading

import zmq

from internvl_jax.serving.dvd.ending import end_sockets


def test_sockets_are_closed():
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind("tcp://127.0.0.1:*")
    end_sockets(context)
    assert router.closed and context.closed


def test_a_context_that_never_ends_is_left(caplog):
    never = threading.Event()

    class Stuck:
        def destroy(self, linger):
            never.wait()

    end_sockets(Stuck(), patience=0.01)
    assert "did not end within 0.01 s" in caplog.text
    never.set()
