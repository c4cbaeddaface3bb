"""Lines between process 0 and every other process of a pod.

1. Process 0 listens where JAX's coordinator will, until every other process has called, and lists those that have not.
   (JAX, left to itself, aborts after its time limit without a word of who is missing.)
2. The connections stay open as long as the processes live: the end of one is how the death of a process is noticed, at
   once where its system closes it, and within a limit of silence where a whole machine is gone.
3. What they tell each other are JSON objects, one a line.
"""

import contextlib
import json
import select
import socket
import time
from typing import Any

from internvl_jax.errors import InputError

_PATIENCE = 5.0  # seconds for what answers at once: a connection, the greeting of a process that has called
_PAUSE = 0.1
_PROBES = 3


class Line:
    """One end of a connection."""

    def __init__(self, connection: socket.socket):
        self._connection, self._rest = connection, b""

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message; that nobody is there to hear it is noticed by reading."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def read(self, seconds: float | None = None) -> list[dict[str, Any]] | None:
        """The messages that have come, waiting for something to come; None after the last.

        Raises:
          ValueError: the other side is none of ours.
        """
        try:
            self._connection.settimeout(seconds)
            block = self._connection.recv(1 << 16)
        except OSError:
            return None
        *whole, self._rest = (self._rest + block).split(b"\n")
        return [json.loads(each) for each in whole] if block else None

    def quiet(self) -> bool:
        """Whether the other side is there and has not said anything yet."""
        return not select.select([self._connection], [], [], 0)[0]

    def keep(self, seconds: int) -> None:
        """Lets the system look after the connection: it ends when the other machine is silent for so long."""
        each = max(1, seconds // (_PROBES + 1))
        for option, value in (
            (socket.TCP_KEEPIDLE, each),
            (socket.TCP_KEEPINTVL, each),
            (socket.TCP_KEEPCNT, _PROBES),
            (socket.TCP_USER_TIMEOUT, 1000 * seconds),  # where something was on its way
        ):
            self._connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def close(self) -> None:
        self._connection.close()


def gather(port: int, processes: int, seconds: float) -> dict[int, Line]:
    """Process 0: waits until all have called.

    Raises:
      InputError: not all have; those that have are told who is missing. Or the port is not free.
    """
    ends, lines = time.monotonic() + seconds, dict[int, Line]()
    with _listen(port) as server:
        while len(lines) < processes - 1:
            server.settimeout(max(_PAUSE, ends - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                _forget_dead(lines)
                missing = ", ".join(str(number) for number in range(1, processes) if number not in lines)
                problem = (
                    f"process {missing} of {processes} has not come within {seconds:g} s (come: "
                    f"{', '.join(map(str, [0, *sorted(lines)]))}); look at its log, or give it longer by --start_limit"
                )
                for line in lines.values():
                    line.send({"problem": problem})
                    line.close()
                raise InputError(problem) from None
            _greet(Line(connection), processes, lines)
            _forget_dead(lines)
    for line in lines.values():
        line.send({})
    return lines


def _forget_dead(lines: dict[int, Line]) -> None:
    """Of those that wait; others may take their places."""
    for number in [number for number, line in lines.items() if not line.quiet()]:
        lines.pop(number).close()


def _greet(line: Line, processes: int, lines: dict[int, Line]) -> None:
    """Enters who calls, or says why not; hangs up on who is none of ours."""
    try:
        (hello,) = line.read(_PATIENCE) or [{}]
        number, theirs = int(hello["process"]), int(hello["processes"])
    except (ValueError, KeyError, TypeError):
        line.close()
        return
    problem = ""
    if theirs != processes:
        problem = f"process {number} counts {theirs} processes, process 0 counts {processes}; give all the same number"
    elif not 0 < number < processes:
        problem = f"a second process calls itself {number}; give each a number of its own"
    elif number in lines and lines[number].quiet():
        problem = f"two processes call themselves {number}; give each a number of its own"
    if problem:
        line.send({"problem": problem})
        line.close()
        return
    if number in lines:
        lines[number].close()
    lines[number] = line


def call(host: str, port: int, process: int, processes: int, seconds: float) -> Line:
    """Every other process: calls process 0 and waits until all have.

    Raises:
      InputError: process 0 is not there, or says what is wrong.
    """
    ends = time.monotonic() + seconds
    hello = {"process": process, "processes": processes}
    while True:
        line = None
        try:
            line = Line(socket.create_connection((host, port), timeout=_PATIENCE))
            line.send(hello)
            if answer := line.read(seconds + _PATIENCE):
                break
            problem = "it hung up"
        except (OSError, ValueError) as error:
            problem = str(error)
        if line is not None:
            line.close()
        if time.monotonic() > ends:
            raise InputError(
                f"process 0 can't be reached at {host}:{port} for {seconds:g} s ({problem}); look at its log, correct "
                "the coordinator's address, or give it longer by --start_limit"
            )
        time.sleep(_PAUSE)
    if "problem" in answer[0]:
        line.close()
        raise InputError(answer[0]["problem"])
    return line


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, backlog=1024, dualstack_ipv6=both
        )
    except OSError as error:
        raise InputError(f"process 0 can't listen at port {port} ({error.strerror}); give another port") from error
