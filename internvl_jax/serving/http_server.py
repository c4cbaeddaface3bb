"""Listens, gets ready, answers, and ends in order."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
import traceback
import types
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

from internvl_jax.errors import InputError
from internvl_jax.serving.door import Doors
from internvl_jax.serving.service import Service


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address, before anything slow begins.

    Raises:
      InputError: somebody else has it, or there is no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise InputError(f"can't listen at {host}:{port}: {error}; give another --host or --port") from None


def url(listening: socket.socket) -> str:
    """Where it listens."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


_WARNING_SECONDS = 10.0


class _NoWords(logging.Filter):
    """Of errors only where they arose: their words may be a client's. Of what is no HTTP a warning now and then."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING:
            if record.created < self._told.get(record.msg, 0) + _WARNING_SECONDS:
                return False
            self._told[record.msg] = record.created
        if record.exc_info and record.exc_info[0] is not None:
            frames = "".join(traceback.format_tb(record.exc_info[2]))
            record.msg, record.args, record.exc_info = f"{record.msg}\n{frames}{record.exc_info[0].__name__}", (), None
        return True


_NO_WORDS = _NoWords()


def _config(app: Any) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").addFilter(_NO_WORDS)  # once, however many servers there are
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=1 << 16,
    )


@contextlib.contextmanager
def serving_beside(app: Any, listening: socket.socket) -> Iterator[None]:
    """Serves an application in a thread of its own as long as it lasts.

    Args:
      listening: where; it stays open, and who connects afterwards waits for whoever serves there next.
    """
    with listening.dup() as own:
        server = uvicorn.Server(_config(app))
        thread = threading.Thread(target=server.run, args=([own],), name="beside", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()


Prepare = Callable[[contextlib.AsyncExitStack], Awaitable[object]]


class HttpServer(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C; then answers what it has begun and refuses the rest. A second one ends at once.

    Args:
      app: the application.
      doors: what is let in; told what the server does.
      service: what answers.
      prepare: gets it ready, after which it is open; what it opened is closed at the end.
      grace: seconds for what is being answered when the server is to end.
    """

    def __init__(self, app: Any, doors: Doors, service: Service, prepare: Prepare, grace: float):
        super().__init__(_config(app))
        self._doors, self._service, self._prepare, self._grace = doors, service, prepare, grace
        self._end = 0.0

    def serve_at(self, listening: socket.socket, ready: Callable[[], None]) -> None:
        """Serves until it is told to end.

        Args:
          ready: called once requests are answered.
        """

        async def serve() -> None:
            async with contextlib.AsyncExitStack() as opened:
                preparing = asyncio.ensure_future(self._open(opened, ready))
                try:
                    await self.serve([listening])
                finally:
                    preparing.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await preparing

        asyncio.run(serve())

    async def _open(self, opened: contextlib.AsyncExitStack, ready: Callable[[], None]) -> None:
        prepared = False
        try:
            await self._prepare(opened)
            prepared = True
        finally:
            self.should_exit = self.should_exit or not prepared
        if self._doors.phase == "starting":
            self._doors.phase = "ready"
            ready()

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        """Begins to end; the second time ends."""
        again = self._doors.phase == "stopping"
        super().handle_exit(sig, frame)
        if again or not self._service.writing:
            return
        self.should_exit = False
        self._doors.phase, self._end = "stopping", time.monotonic() + self._grace
        if sig == signal.SIGINT:
            print("ending: answers that were begun are finished; Ctrl-C again ends at once", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end, asked ten times a second."""
        if self._service.engine.failed:
            self._doors.phase = "failed"
        written = not self._service.writing or time.monotonic() > self._end
        over = self._doors.phase == "failed" or (self._doors.phase == "stopping" and written)
        return await super().on_tick(counter) or over
