"""All requests at the language server: which vision server has which, and what comes of it."""

import collections
import contextlib
import functools
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import zmq

from internvl_jax.errors import InputError
from internvl_jax.models import InternVLConfig
from internvl_jax.serving.dvd.dvd_settings import VisionClientCounters, VisionClientLimits, VisionClientState
from internvl_jax.serving.dvd.ending import end_sockets
from internvl_jax.serving.dvd.feature_cache import FeatureCache
from internvl_jax.serving.dvd.feature_request import FeatureRequest
from internvl_jax.serving.dvd.vision_link import REFUSALS, VisionLink
from internvl_jax.serving.dvd.wire_messages import (
    Cancel,
    KeptFeatures,
    Need,
    TilePixels,
    TileShape,
    WireError,
    WireFault,
    WireMessage,
)

_TICK = 50  # milliseconds between looks at the clock
_LOOK = 0.02  # seconds between looks at what waits
# By the bytes of a number: an integer that is as long, and what is all ones in a number that is not finite.
_EXPONENT: dict[int, tuple[type[np.unsignedinteger], int]] = {2: (np.uint16, 0x7F80), 4: (np.uint32, 0x7F800000)}


class VisionUnavailable(Exception):
    """No vision server gave a request's features: one sentence that says why."""


class VisionBusy(VisionUnavailable):
    """A request's time was up before it was its turn: others had taken all credits or all room."""


class TileDispatch:
    """Runs in a thread of its own; `ask`, `forget` and `end` may be called in any.

    Args:
      addresses: of the vision servers, as libzmq writes them.
      config: the model's config.
      model: its fingerprint, as it stands on the wire.
      secret: shared with the servers.
      limits: see `VisionClientLimits`.
      dtype: of features.

    Attributes:
      state: what is there, a moment ago at most.
      links: to the servers.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        config: InternVLConfig,
        model: bytes,
        secret: bytes | None,
        limits: VisionClientLimits,
        dtype: np.dtype,
    ):
        self._limits, self._shape = limits, TileShape.of(config)
        self._flash, self._cache = config.flash is not None, FeatureCache(limits.cache_bytes)
        self.counters, self.state = VisionClientCounters(), VisionClientState()
        self._poller, self._weights = zmq.Poller(), b""
        self.links = [
            VisionLink(address, self._shape, model, secret, limits, self._pin, self._poller) for address in addresses
        ]
        self._requests = dict[int, FeatureRequest]()
        self._waiting = collections.deque[FeatureRequest]()
        self._where = dict[int, VisionLink]()
        self._reserved, self._tile_bytes = 0, self._shape.tokens * self._shape.width * dtype.itemsize
        self._alone = self._looked = 0.0  # since when there is no server; when we looked last
        self._inbox = collections.deque[Callable[[], None]]()
        self._lock, self._ending, self._ended = threading.Lock(), False, True
        self._thread = threading.Thread(target=self._run, name="vision client", daemon=True)

    def start(self) -> None:
        self._ear, self._mouth = socket.socketpair()  # how other threads wake ours
        for end in (self._ear, self._mouth):
            end.setblocking(False)
        self._alone, self._ended = time.monotonic(), False
        self._thread.start()

    def ask(self, request: FeatureRequest) -> None:
        """Sees to it that a request is answered. `forget` has to follow."""
        if not self._post(functools.partial(self._ask, request)):
            request.answer.set_exception(VisionUnavailable("the connection to the vision servers was closed"))

    def forget(self, request: FeatureRequest) -> None:
        """Ends a request, if it has not ended, and gives back what it held."""
        self._post(functools.partial(self._forget, request))

    def end(self) -> None:
        """Ends all requests and connections, and the thread."""
        self._post(self._end)
        self._thread.join()

    def _post(self, call: Callable[[], None]) -> bool:
        with self._lock:
            if not self._ended:
                self._inbox.append(call)
                with contextlib.suppress(BlockingIOError):  # then enough bytes are there to be heard
                    self._mouth.send(b"\0")
            return not self._ended

    # All that follows is called in the thread.

    def _end(self) -> None:
        self._ending = True

    def _run(self) -> None:
        context = zmq.Context(io_threads=1)
        self._poller.register(self._ear, zmq.POLLIN)
        try:
            while not self._ending:
                for link in self.links:
                    self._listen(link, context)
                self._assign()
                self._look()
                self._poller.poll(_TICK)
                self._hear()
        finally:
            with self._lock:
                self._ended = True
            self._hear()
            for request in self._requests.values():
                self._fail(request, VisionUnavailable("the connection to the vision servers was closed"))
            for link in self.links:
                link.leave()
            end_sockets(context)
            self._ear.close()
            self._mouth.close()

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(1 << 12)
        while self._inbox:
            self._inbox.popleft()()

    def _pin(self, weights: bytes) -> bool:
        """Takes the first server's weights for those of all: caches live longer than connections."""
        self._weights = self._weights or weights
        return weights == self._weights

    def _listen(self, link: VisionLink, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        was_ready = link.ready
        try:
            for message in link.messages():
                self._take(link, message)
        except WireError as error:
            link.close(str(error), refused=error.code in REFUSALS)
        link.watch(context)
        if was_ready and not link.ready:
            self.counters.lost += 1
            for number in [number for number, at in self._where.items() if at is link]:
                self._move(self._requests[number], f"vision server {link.address} was lost")
            if not any(each.ready for each in self.links):
                self._alone = time.monotonic()

    def _take(self, link: VisionLink, message: WireMessage) -> None:
        match message:
            case Need(number, names):
                if self._where.get(number) is link:
                    self._send_pixels(link, self._requests[number], names)
            case KeptFeatures():
                if self._where.get(message.request) is link:
                    self._receive(link, self._requests[message.request], message)
            case WireFault(number, _, text):
                if self._where.get(number) is link:
                    request = self._requests[number]
                    request.failed.add(link.address)
                    link.used -= len(request.open)
                    self._move(request, f"vision server {link.address} says: {text}")
            case _:
                raise WireError(f"it sent {type(message).__name__}, out of turn")

    def _send_pixels(self, link: VisionLink, request: FeatureRequest, names: tuple[bytes, ...]) -> None:
        for name in names:
            pixels = request.tile(name)
            link.send(TilePixels(request.number, name, pixels))
            self.counters.sent_bytes += len(pixels)

    def _receive(self, link: VisionLink, request: FeatureRequest, message: KeptFeatures) -> None:
        values_PD = message.values_PD
        if values_PD is not None and not _finite(values_PD):
            why = "sent features that are no finite numbers; look at its weights and dtype"
            self._fail(request, VisionUnavailable(f"vision server {link.address} {why}"))
            return
        if values_PD is not None and not values_PD.flags.aligned:
            message = message._replace(values_PD=values_PD.copy())
        request.take(message, self._shape)
        link.used -= 1
        self._keep(message)
        if not request.open:
            del self._where[request.number]
            request.answer.set_result(request.features())

    def _keep(self, message: KeptFeatures) -> None:
        if self._flash:
            self._cache.note(message.name, message.probability)
        if message.values_PD is not None:
            self.counters.received += 1
            self.counters.received_bytes += message.values_PD.nbytes
            self._cache.put(message.name, message.tokens != self._shape.tokens, message.values_PD)

    def _ask(self, request: FeatureRequest) -> None:
        self._requests[request.number] = request
        request.look_up(self._cache)
        request.decide()
        missing = len(request.missing)
        self.counters.asked += request.distinct
        self.counters.cached += request.distinct - missing
        if not missing:
            request.answer.set_result(request.features())
            return
        if missing > (most := self._limits.pending_bytes // self._tile_bytes):
            self._fail(request, _too_many(missing, most, "whose features are taken in at a time"))
            return
        self._waiting.append(request)

    def _forget(self, request: FeatureRequest) -> None:
        self._let_go(request)
        self._requests.pop(request.number, None)
        self._reserved -= request.reserved
        request.reserved = 0

    def _let_go(self, request: FeatureRequest) -> None:
        """Takes a request from where it waits."""
        link = self._where.pop(request.number, None)
        if link is not None:
            link.used -= len(request.open)
            link.send(Cancel(request.number))
        elif request in self._waiting:
            self._waiting.remove(request)

    def _fail(self, request: FeatureRequest, error: Exception) -> None:
        self._let_go(request)
        if not request.answer.done():
            self.counters.failed += 1
            request.answer.set_exception(error)

    def _move(self, request: FeatureRequest, why: str) -> None:
        """Lets another server have a request that one no longer has."""
        del self._where[request.number]
        request.open, request.moves = set(), request.moves + 1
        if request.moves > self._limits.moves:
            self._fail(request, VisionUnavailable(f"{why}, after {self._limits.moves} others; try again"))
            return
        if request.failed and not [link for link in self._ready if link.address not in request.failed]:
            self._fail(request, VisionUnavailable(why))
            return
        self.counters.moved += 1
        self._waiting.appendleft(request)

    @property
    def _ready(self) -> list[VisionLink]:
        return [link for link in self.links if link.ready]

    def _look(self) -> None:
        """Gives up requests whose time is up, and tells the state."""
        if (now := time.monotonic()) - self._looked < _LOOK:
            return
        self._looked, alone, limits = now, not self._ready, self._limits
        for request in [each for each in self._requests.values() if not each.answer.done()]:
            waits, age = request.number not in self._where, now - request.started
            if age > limits.total:
                kind = VisionBusy if waits and not alone else VisionUnavailable
                self._fail(request, kind(f"no features after {limits.total:g} s; try again later"))
            elif waits and alone and min(age, now - self._alone) > limits.absent:
                why = f"no vision server for {limits.absent:g} s ({self._reasons()}); try again later"
                self._fail(request, VisionUnavailable(why))
        self.state = VisionClientState(
            len(self._ready),
            len(self._requests),
            len(self._waiting),
            sum(link.used for link in self.links),
            self._reserved,
            self._cache.bytes,
        )

    def _reasons(self) -> str:
        return "; ".join(f"{link.address}: {link.reason}" for link in self.links)

    def _assign(self) -> None:
        """Asks servers what waits, in turn, as far as there are credits and room."""
        while self._waiting:
            request = self._waiting[0]
            able = [link for link in self._ready if link.address not in request.failed]
            tiles = request.distinct if self._flash else len(request.missing)
            if able and tiles > (most := max(link.credits for link in able)):
                self._fail(request, _too_many(tiles, most, "that a vision server takes at a time"))
                continue
            free = [link for link in able if link.credits - link.used >= tiles]
            if not free or not self._reserve(request):
                return
            self._waiting.popleft()
            self._send(min(free, key=lambda link: (link.used, _affinity(link.address, request.first))), request)

    def _send(self, link: VisionLink, request: FeatureRequest) -> None:
        request.look_up(self._cache)  # others may have brought what it lacks
        request.decide()
        if not request.missing:
            request.answer.set_result(request.features())
            return
        message = request.ask()
        link.used += len(request.open)
        self._where[request.number] = link
        link.send(message)

    def _reserve(self, request: FeatureRequest) -> bool:
        size = 0 if request.reserved else len(request.missing) * self._tile_bytes
        if self._reserved + size > self._limits.pending_bytes:
            return False
        self._reserved += size
        request.reserved += size
        return True


def _too_many(tiles: int, most: int, what: str) -> InputError:
    return InputError(
        f"the request has {tiles} tiles, more than the {most} {what}; show fewer pictures or smaller ones"
    )


def _finite(values_PD: np.ndarray) -> bool:
    kind, exponent = _EXPONENT[values_PD.itemsize]
    return not np.any(values_PD.view(kind) & exponent == exponent)


def _affinity(address: str, name: bytes) -> bytes:
    """Among servers that are as free, the one that may have seen the tile before."""
    return hashlib.blake2b(address.encode() + name, digest_size=8).digest()
