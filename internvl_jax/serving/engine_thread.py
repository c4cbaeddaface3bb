"""The thread that owns an engine. Callers on an event loop hand in requests and read what becomes certain of them.

The loop never waits for the device, nor the device for the loop: JAX lets go of the interpreter while it computes.
"""

import asyncio
import collections
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.inference import Engine, Piece, Request, TextReader

T = TypeVar("T")

# Tokens are sent as they come, but where they come faster than this, several at a time: a call has its price.
_BURST_SECONDS = 0.03
_FAULTS = 3  # programs that fail one after the other, until the engine counts as broken

_log = logging.getLogger("internvl_jax.serving")


class EngineFailed(Exception):
    """The engine is broken, or gone: nothing is answered any more."""


class Answers:
    """The answers to one request, piece by piece, as they become certain.

    Attributes:
      id: the number of the request.
      asked, seated: `time.monotonic` of when the engine took it, and of the step in which it first got a row.
      began, ended: the same of the first token and of the last one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int):
        self._loop, self._left = loop, count
        self._pieces: asyncio.Queue[list[Piece] | EngineFailed] = asyncio.Queue()
        self.id: int | None = None
        self.asked = self.seated = self.began = self.ended = 0.0

    def put(self, found: list[Piece] | EngineFailed) -> None:
        """From the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, found)

    async def take(self) -> list[Piece]:
        """What became certain next; [] after the last of all answers.

        Raises:
          EngineFailed: the engine is broken.
        """
        if not self._left:
            return []
        found = await self._pieces.get()
        if isinstance(found, EngineFailed):
            raise found
        self.ended = time.monotonic()
        self.began = self.began or self.ended
        self._left -= sum(piece.answer is not None for piece in found)
        return found


class EngineThread:
    """Steps an engine as long as anything is left to write.

    Args:
      reader: reads the engine, which nobody else uses.
      processor: the one that makes prompts.
      burst: tokens of an answer that are written at a time, at most.
      stepped: called with the seconds of every step and the tokens that it reads and writes, in the thread.

    Attributes:
      failed: the engine is broken; nothing is answered any more.
      load: how much the engine had to do after its last step.
    """

    def __init__(
        self,
        reader: TextReader,
        processor: Processor,
        burst: int,
        stepped: Callable[[float, int], None] = lambda *_: None,
    ):
        self._reader, self._processor, self._burst, self._stepped = reader, processor, burst, stepped
        self._changed = threading.Condition()
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._futures: dict[asyncio.Future[Any], asyncio.AbstractEventLoop] = {}
        self._owners: dict[int, Answers] = {}
        self._thread = threading.Thread(target=self._guarded, name="engine", daemon=True)
        self._closed, self._seconds, self._stepping = False, _BURST_SECONDS, 0.0
        self.failed = False
        self.load = reader.engine.load

    def start(self) -> None:
        """Begins to step."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after its present step; what is not written by then never is."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    async def call(self, function: Callable[[], T]) -> T:
        """What a function returns that uses the engine; it runs between two steps.

        Raises:
          EngineFailed: the engine is broken.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                value = function()
            except InputError as error:
                _settle(loop, future, error)
            else:
                _settle(loop, future, None, value)
            self._futures.pop(future)

        self._do(run, lambda: self._futures.setdefault(future, loop))
        return await future

    async def submit(self, request: Request, begun: str) -> Answers:
        """Takes a request.

        Args:
          begun: how its answers start by the prompt.

        Raises:
          InputError: a request that this model can't read, or that no row has room for.
          EngineFailed: the engine is broken.
        """
        answers = Answers(asyncio.get_running_loop(), len(request.seeds))
        taken = False

        def add() -> None:
            answers.id = self._reader.add(request, self._processor, begun)
            self._owners[answers.id] = answers
            answers.asked = time.monotonic()

        try:
            await self.call(add)
            taken = True
        finally:
            if not taken:
                self.drop(answers)
        return answers

    def drop(self, answers: Answers) -> None:
        """Ends answers that nobody waits for; their rows are free at the next step."""
        with contextlib.suppress(EngineFailed):
            self._do(lambda: self._drop(answers))

    def _drop(self, answers: Answers) -> None:
        if answers.id is not None and self._owners.pop(answers.id, None) is not None:
            self._reader.drop(answers.id)

    def _do(self, call: Callable[[], None], noted: Callable[[], object] = lambda: None) -> None:
        with self._changed:
            if self._closed:
                raise EngineFailed("the engine has ended")
            noted()
            self._calls.append(call)
            self._changed.notify()

    def _guarded(self) -> None:
        try:
            self._run()
        finally:
            with self._changed:
                self.failed = not self._closed
                self._closed = True
            for answers in self._owners.values():
                answers.put(EngineFailed("the engine has ended"))
            for future, loop in self._futures.items():
                _settle(loop, future, EngineFailed("the engine has ended"))

    def _run(self) -> None:
        faults = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._owners or self._closed)
                if self._closed:
                    return
                calls, self._calls = self._calls, collections.deque()
            for call in calls:
                call()
            self.load = self._reader.engine.load
            if not self._owners:
                continue
            try:
                self._step()
                faults, self.load = 0, self._reader.engine.load
            except (jax.errors.JaxRuntimeError, MemoryError):
                # The engine reads again what a failed program took over.
                faults += 1
                _log.exception("a program failed")
                if faults == _FAULTS:
                    raise

    @property
    def engine(self) -> Engine:
        """For functions that `call` runs."""
        return self._reader.engine

    @property
    def num_compiled(self) -> int:
        """See `Engine.num_compiled`."""
        return self._reader.engine.num_compiled

    def reading_rate(self) -> float:
        """Tokens of prompts that were read in a second so far; 0 before any was."""
        return self._reader.engine.prefilled / self._stepping if self._stepping else 0.0

    def _step(self) -> None:
        most = max(1, min(self._burst, round(_BURST_SECONDS / self._seconds)))
        began, read = time.monotonic(), self._reader.engine.prefilled
        pieces = self._reader.step(most)
        seconds = time.monotonic() - began
        self._stepping += seconds
        self._stepped(seconds, self._reader.engine.prefilled - read + len(pieces))
        unseated = self._reader.engine.load.unseated
        for id, answers in self._owners.items():
            if not answers.seated and id not in unseated:
                answers.seated = began
        tokens = max(collections.Counter((piece.id, piece.number) for piece in pieces).values(), default=0)
        if tokens:
            self._seconds = 0.8 * self._seconds + 0.2 * seconds / tokens
        found: dict[int, list[Piece]] = {}
        for piece in pieces:
            found.setdefault(piece.id, []).append(piece)
        for id, own in found.items():
            self._owners[id].put(own)
            if not self._reader.writes(id):
                del self._owners[id]
                self._reader.drop(id)


def _settle(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], error: Exception | None, value: Any = None
) -> None:
    def settle() -> None:
        if future.done():  # nobody waits any more
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(settle)
