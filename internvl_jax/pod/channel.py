"""What process 0 tells all others, in its order, while their programs run.

It goes through the store that JAX's processes share and not over the devices: a collective would wait for the programs
before it, so that nothing could be prepared meanwhile.
"""

import itertools

import jax
from jax._src.distributed import global_state  # see agreement.py

_CHANNELS = itertools.count()  # processes open their channels in the same order
_KEPT = 64  # messages that the store holds, at most twice as many
_WAIT = 1_000  # milliseconds, over and over: nothing may be said for days, and Ctrl-C is heard between
_LATE = 600_000  # milliseconds until a process that hears nothing any more ends the others


class Channel:
    """Opened by all processes; one tells, the others hear all that it tells."""

    def __init__(self) -> None:
        self._prefix, self._count = f"internvl_jax/channel/{next(_CHANNELS)}", 0

    def tell(self, message: bytes) -> None:
        """Process 0: one more message for all others."""
        global_state.client.key_value_set_bytes(f"{self._prefix}/{self._count}", message)
        self._next()

    def hear(self) -> bytes:
        """The other processes: the next message, once it has been told."""
        while True:
            try:
                message = global_state.client.blocking_key_value_get_bytes(f"{self._prefix}/{self._count}", _WAIT)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                continue
            self._next()
            return message

    def _next(self) -> None:
        """Lets go of messages that all have heard."""
        self._count += 1
        if self._count % _KEPT:
            return
        global_state.client.wait_at_barrier(f"{self._prefix}/heard/{self._count}", _LATE)
        if global_state.process_id == 0:
            for number in range(self._count - _KEPT, self._count):
                global_state.client.key_value_delete(f"{self._prefix}/{number}")
