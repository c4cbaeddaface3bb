"""All requests at the vision server: whose pixels are asked for, and who gets which features."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from internvl_jax.inference import digest
from internvl_jax.models import FlashConfig
from internvl_jax.serving.dvd.dvd_settings import VisionServerCounters, VisionServerLimits
from internvl_jax.serving.dvd.feature_cache import FeatureCache
from internvl_jax.serving.dvd.tile_order import TileOrder
from internvl_jax.serving.dvd.tile_queue import TileQueue, TowerBatch
from internvl_jax.serving.dvd.wire_messages import (
    Code,
    EncodeTiles,
    Need,
    TilePixels,
    TileShape,
    WireError,
    WireFault,
    WireMessage,
)

Waiter = tuple[bytes, int]  # a client and its request


@dataclasses.dataclass
class _Awaited:
    """A tile that has to pass the tower: who waits for it, and whether its pixels have come."""

    waiters: set[Waiter] = dataclasses.field(default_factory=set)
    there: bool = False


class TileDesk:
    """For one thread.

    Args:
      shape: of the model's tiles.
      flash: the router's config; None without one.
      limits: see `VisionServerLimits`.
      queue: where tiles wait for the tower.
      send: sends a client a message; a client that can't be reached is told of by `leave`, later.
    """

    def __init__(
        self,
        shape: TileShape,
        flash: FlashConfig | None,
        limits: VisionServerLimits,
        queue: TileQueue,
        send: Callable[[bytes, WireMessage], None],
    ):
        self._shape, self._flash, self._queue, self._send = shape, flash, queue, send
        self._credits = limits.credits
        self.cache, self.counters = FeatureCache(limits.cache_bytes), VisionServerCounters()
        self._orders = dict[bytes, dict[int, TileOrder]]()
        self._awaited = dict[bytes, _Awaited]()

    @property
    def credits(self) -> int:
        """Tiles that clients have asked for and not got."""
        return sum(self._used(client) for client in self._orders)

    @property
    def awaited(self) -> int:
        """Distinct tiles that have to pass the tower."""
        return len(self._awaited)

    def ask(self, client: bytes, message: EncodeTiles) -> None:
        """A new request.

        Raises:
          WireError: the client may not ask for it.
        """
        orders = self._orders.setdefault(client, {})
        order = TileOrder(message, self._shape, self._flash)
        if message.request in orders:
            raise WireError(f"request {message.request} was asked for twice; give each a number of its own")
        if self._used(client) + len(order.unsent) > self._credits:
            raise WireError(
                f"request {message.request} of {len(order.unsent)} tiles is more than what the client's "
                f"{self._credits} credits allow; wait until earlier tiles have come"
            )
        orders[message.request] = order
        asked = len(order.unsent)
        lacking = self._advance((client, message.request))
        self.counters.asked += asked
        self.counters.cached += asked - len(lacking)

    def pixels(self, client: bytes, message: TilePixels) -> None:
        """A tile that was asked for.

        Raises:
          WireError: it was not, or it is another one.
        """
        order = self._orders.get(client, {}).get(message.request)
        if order is None:
            return  # the request has ended meanwhile
        if message.name not in order.asked:
            raise WireError(f"request {message.request} sent a tile that it was not asked for")
        awaited = self._awaited.get(message.name)
        if awaited is None or awaited.there:
            return  # somebody else was faster
        side = self._shape.side
        tile_HWC = np.frombuffer(message.pixels, np.uint8).reshape(side, side, 3)
        if digest(tile_HWC) != message.name:
            raise WireError(f"request {message.request} sent a tile whose digest is not its name")
        awaited.there = True
        self._queue.put(message.name, tile_HWC)

    def cancel(self, client: bytes, request: int) -> None:
        """Ends a request, if it is open."""
        if order := self._orders.get(client, {}).pop(request, None):
            self._release((client, request), order.asked | order.unsent.keys())

    def leave(self, client: bytes) -> None:
        """Ends all requests of a client."""
        for request in list(self._orders.get(client, {})):
            self.cancel(client, request)
        self._orders.pop(client, None)

    def passed(self, batch: TowerBatch) -> None:
        """Takes over tiles that have passed the tower, or failed to."""
        self._count(batch)
        waiters = dict[Waiter, None]()
        for name in batch.names:
            waiters |= dict.fromkeys(self._awaited.pop(name, _Awaited()).waiters)
        for result in batch.results:
            self.cache.put(result.name, False, result.values_PD)
            if self._flash:
                self.cache.put(result.name, True, result.compressed_PD)
                self.cache.note(result.name, result.probability)
        for waiter in waiters:
            client, request = waiter
            if batch.problem:
                self.cancel(client, request)
                self._send(client, WireFault(request, Code.TOWER, batch.problem))
                continue
            for result in batch.results:
                self._orders[client][request].take(result)
            self._advance(waiter)

    def _used(self, client: bytes) -> int:
        return sum(len(order.unsent) for order in self._orders[client].values())

    def _advance(self, waiter: Waiter) -> list[bytes]:
        """Sends what can be sent, asks for what is lacking; names the latter."""
        client, request = waiter
        order = self._orders[client][request]
        messages, lacking = order.advance(self.cache)
        for message in messages:
            self._send(client, message)
            if message.values_PD is not None:
                self.counters.sent += 1
                self.counters.sent_bytes += message.values_PD.nbytes
        wanted = list[bytes]()
        for name in lacking:
            awaited = self._awaited.setdefault(name, _Awaited())
            awaited.waiters.add(waiter)
            if not awaited.there and name not in order.asked:
                wanted.append(name)
        if wanted:
            order.asked.update(wanted)
            self._send(client, Need(request, tuple(wanted)))
        if not order.unsent:
            del self._orders[client][request]
        return lacking

    def _release(self, waiter: Waiter, names: Iterable[bytes]) -> None:
        for name in names:
            awaited = self._awaited.get(name)
            if awaited is None:
                continue
            awaited.waiters.discard(waiter)
            # A tile in the tower stays: whoever asks for it now waits for it.
            if not awaited.waiters and (not awaited.there or self._queue.discard(name)):
                del self._awaited[name]

    def _count(self, batch: TowerBatch) -> None:
        counters = self.counters
        counters.failed += bool(batch.problem)
        counters.tiles += len(batch.results)
        counters.batches[len(batch.names)] += 1
        counters.tower_seconds += batch.seconds
        counters.queue_seconds += sum(batch.waited)
