"""Messages to prompts in processes of their own: a picture that breaks or holds up a decoder costs its request alone.

1. `contents.admit` bounds what a request brings while it is still text.
2. A `_Worker` is a process (`data.serve_prompts`) and the thread that talks to it. What comes back is read as JSON and
   bytes, never unpickled: the process has decoded pictures of strangers.
3. `PromptWorkers` gives requests to idle workers, and ends those that take too long or whose request is cancelled.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import multiprocessing.connection
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

import internvl_jax
from internvl_jax.data import ChatInputs, Processor, PromptOrder, PromptReply, PromptSettings
from internvl_jax.errors import InputError
from internvl_jax.serving.contents import admit, refused
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.refusals import Refusal

_LOG = logging.getLogger(__name__)
_MAIN = "from internvl_jax.data import serve_prompts; serve_prompts()"
_START_SECONDS = 120.0  # until a new process is ready, on a busy machine
_HEADER_BYTES = 1 << 20
_PATIENCE = 2.0  # seconds that an order may still take whose client has left
_SENTENCE = 500  # characters of a worker's that a client may get


class _Ended(Exception):
    """A worker ended while it was at an order; late: because that took too long."""

    def __init__(self, late: bool):
        super().__init__()
        self.late = late


class _Worker:
    """A process and the one thread that talks to it, in which `start`, `ask` and `stop` run."""

    def __init__(self, processor: Processor, limits: Limits):
        self._processor, self._limits = processor, limits
        self.thread = concurrent.futures.ThreadPoolExecutor(1, "prompts")
        self._process: subprocess.Popen | None = None
        self._connection: multiprocessing.connection.Connection | None = None
        self._closed = False

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def renew(self) -> None:
        """Starts another process if this one has ended, in the time between orders."""
        if not self._closed:
            self.thread.submit(self.start)

    def close(self) -> None:
        """Ends the process; no other is started."""
        self._closed = True
        self.kill()

    def start(self) -> None:
        """A process, unless there is one; OSError or EOFError where none comes up."""
        if self.alive:
            return
        self.stop()
        if self._closed:
            raise OSError("the server ends")
        ours, theirs = socket.socketpair()
        root = str(pathlib.Path(internvl_jax.__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, sys.path)])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
                pass_fds=(theirs.fileno(),),
            )
        self._connection = multiprocessing.connection.Connection(ours.detach())
        with self._killed_after(_START_SECONDS):
            self._connection.send((self._processor, self._limits.prompt_memory))
            self._connection.recv_bytes(_HEADER_BYTES)

    def stop(self) -> None:
        """Ends the process, if there is one, and what belongs to it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(self, order: PromptOrder) -> ChatInputs:
        """What the process makes of an order.

        Raises:
          InputError: it refuses.
          _Ended: it ended, or answered what can't be.
        """
        self._send(order)
        began = time.monotonic()
        try:
            with self._killed_after(self._limits.prompt_seconds):
                return self._receive()
        except (EOFError, OSError, msgspec.MsgspecError) as error:
            late = time.monotonic() - began >= self._limits.prompt_seconds
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)  # what it ended with, if it ended by itself
            self._process.kill()
            _LOG.warning("a prompt worker ended (%s, exit code %d)", type(error).__name__, self._process.wait())
            raise _Ended(late) from None

    def _send(self, order: PromptOrder) -> None:
        # A process that ended while it had nothing to do, or before it had read all, did not end by this order.
        for last in (False, True):
            try:
                self.start()
                with self._killed_after(self._limits.prompt_seconds):
                    self._connection.send(order)
                return
            except (EOFError, OSError):
                self.stop()
                if last:
                    raise

    def _receive(self) -> ChatInputs:
        reply = msgspec.json.decode(self._connection.recv_bytes(_HEADER_BYTES), type=PromptReply)
        if reply.refused is not None:
            raise InputError(reply.refused[:_SENTENCE])
        config = self._processor.image_config
        side, limits = config.tile_size, self._limits
        most = 16 * (limits.text_chars + 4096) + 4 * limits.tiles * (config.tokens_per_tile + 2)
        tokens_T = np.frombuffer(self._connection.recv_bytes(most), np.uint8)
        tiles = np.frombuffer(self._connection.recv_bytes(limits.tiles * side * side * 3), np.uint8)
        if len(tokens_T) != 4 * reply.tokens or len(tiles) != reply.tiles * side * side * 3:
            raise OSError("sizes that don't fit")
        tiles_GHWC = tiles.reshape(reply.tiles, side, side, 3)
        return ChatInputs(tokens_T.view(np.int32), tiles_GHWC, reply.image_token_counts, reply.image_sizes)

    @contextlib.contextmanager
    def _killed_after(self, seconds: float) -> Iterator[None]:
        killer = threading.Timer(seconds, self._process.kill)
        killer.daemon = True
        killer.start()
        try:
            yield
        finally:
            killer.cancel()


_PLAIN = PromptSettings()


class PromptWorkers:
    """Makes prompts of messages in `count` processes, for one event loop; an asynchronous context manager.

    A request whose worker ends, is killed or takes longer than `limits.prompt_seconds` is refused; others go on, and
    another process takes the worker's place.

    Args:
      processor: the model's.
      count: processes.
      limits: bounds of a request.
    """

    def __init__(self, processor: Processor, count: int, limits: Limits):
        if count < 1:
            raise InputError(f"the server would have {count} prompt workers; it needs at least one.")
        config = processor.image_config
        fewer = dataclasses.replace(config, max_pixels=min(config.max_pixels, limits.pixels))
        self._processor = dataclasses.replace(processor, image_config=fewer)
        self._limits = limits
        self._workers = [_Worker(self._processor, limits) for _ in range(count)]
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        self.waiting = 0

    async def __aenter__(self) -> "PromptWorkers":
        """Starts all processes; InputError where one doesn't come up."""
        try:
            await asyncio.gather(*(_in_thread(worker, worker.start) for worker in self._workers))
        except (EOFError, OSError) as error:
            await self.__aexit__()
            why = error.strerror if isinstance(error, OSError) and error.strerror else "it ended, see above"
            raise InputError(f"a prompt worker could not be started ({why}).") from None
        for worker in self._workers:
            self._idle.put_nowait(worker)
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()
        await asyncio.gather(*(_in_thread(worker, worker.stop) for worker in self._workers))
        for worker in self._workers:
            worker.thread.shutdown()

    @property
    def pids(self) -> Sequence[int]:
        """Of the processes that there are."""
        return [worker.pid for worker in self._workers if worker.alive]

    async def prompt(self, messages: list[dict], *, settings: PromptSettings = _PLAIN) -> ChatInputs:
        """The model inputs of messages, equal to those that the processor makes; see `admit`.

        Raises:
          Refusal: a bound is passed, a picture can't be read or ends its worker, or it takes too long.
        """
        limits = self._limits
        admitted = admit(messages, settings, self._processor.image_config, limits)
        try:
            settings.adapt(self._processor)
        except InputError as error:
            raise refused(str(error), "reasoning_effort") from None
        order = PromptOrder(admitted, settings, limits.tiles, 2 * limits.prompt_seconds)
        self.waiting += 1
        try:
            worker = await self._idle.get()
        finally:
            self.waiting -= 1
        asked = asyncio.ensure_future(_in_thread(worker, worker.ask, order))
        asked.add_done_callback(lambda _: self._take_back(worker))
        try:
            return await asyncio.shield(asked)
        except InputError as error:
            raise refused(str(error)) from None
        except _Ended as ended:
            raise (_too_late(limits) if ended.late else _broken()) from None
        except (EOFError, OSError):
            raise Refusal(503, "no process comes up to read the prompt in; try again later.") from None
        except asyncio.CancelledError:
            # A new process costs more than what most orders still need.
            asked.add_done_callback(lambda done: done.exception())  # nobody else asks for it
            asyncio.get_running_loop().call_later(_PATIENCE, self._give_up, worker, asked)
            raise

    def _give_up(self, worker: _Worker, asked: asyncio.Future) -> None:
        if not asked.done():
            worker.kill()

    def _take_back(self, worker: _Worker) -> None:
        worker.renew()
        self._idle.put_nowait(worker)


def _too_late(limits: Limits) -> Refusal:
    return refused(
        f"the pictures and texts took longer than {limits.prompt_seconds:g} s to read, the limit; send smaller ones.",
        code="prompt_timeout",
    )


def _broken() -> Refusal:
    return refused(
        "the process that read the pictures ended over them; save them anew, as PNG or JPEG.", code="prompt_failed"
    )


async def _in_thread(worker: _Worker, function: Callable, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(worker.thread, function, *arguments)
