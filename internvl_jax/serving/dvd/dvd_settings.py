"""Limits and counters of both ends of the wire."""

import collections
import dataclasses
from typing import Annotated

from msgspec import Meta

from internvl_jax.validation import Count, CountOrZero, NotNegative, Positive, check_fields


class _Bounded:
    def __post_init__(self) -> None:
        check_fields(self, type(self).__name__)


@dataclasses.dataclass(frozen=True)
class VisionServerLimits(_Bounded):
    """Beside its cache, a server's memory holds pixels and features of at most peers x credits tiles, and what was sent
    and has not left: credits tiles a client.

    Attributes:
      peers: language servers at a time.
      credits: tiles that each of them may have asked for and not have got; a request can't have more.
      batch: tiles that pass the tower together.
      gather: seconds that the first tile of a batch waits for others.
      cache_bytes: for features of tiles that may be asked for again.
      timeout: seconds of silence after which a language server counts as dead.
    """

    peers: Count = 8
    credits: Annotated[int, Meta(ge=1, le=4096)] = 256
    batch: Count = 32
    gather: NotNegative = 0.005
    cache_bytes: CountOrZero = 2 << 30
    timeout: Positive = 4.0


@dataclasses.dataclass(frozen=True)
class VisionClientLimits(_Bounded):
    """Attributes:
    heartbeat: seconds between signs of life.
    timeout: seconds of silence after which a vision server counts as dead.
    total: seconds until a request is given up.
    absent: seconds that requests wait while there is no vision server at all.
    moves: how often the tiles of a request go to another server.
    pending_bytes: of features that requests in progress may come to; others wait.
    cache_bytes: for features of tiles that may be asked for again.
    backoff: seconds until the first new attempt to reach a server; doubled each time.
    most_backoff: seconds between attempts, at most: a server is found so long after its return.
    """

    heartbeat: Positive = 2.0
    timeout: Positive = 4.0
    total: Positive = 30.0
    absent: Positive = 5.0
    moves: CountOrZero = 2
    pending_bytes: Count = 1 << 30
    cache_bytes: CountOrZero = 1 << 30
    backoff: Positive = 0.1
    most_backoff: Positive = 3.0


@dataclasses.dataclass
class VisionServerCounters:
    """What has happened since the start, written by the server's threads.

    Attributes:
      tiles: that passed the tower.
      batches: how often how many passed together.
      failed: batches that the tower failed with.
      tower_seconds: in the tower, of all batches together.
      queue_seconds: in the queue, of all tiles together.
      asked: distinct tiles of requests.
      cached: those of them that did not have to pass the tower at first.
      sent: tiles' features.
      sent_bytes: of features.
      refused: messages and greetings.
    """

    tiles: int = 0
    batches: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    failed: int = 0
    tower_seconds: float = 0.0
    queue_seconds: float = 0.0
    asked: int = 0
    cached: int = 0
    sent: int = 0
    sent_bytes: int = 0
    refused: int = 0


@dataclasses.dataclass(frozen=True)
class VisionServerState:
    """What is there at a moment.

    Attributes:
      clients: language servers that are connected.
      credits: tiles that they have asked for and not got.
      awaited: distinct tiles that have to pass the tower, the ones whose pixels have not come included.
      queued: those of them that wait in front of the tower.
      cache_bytes: of features.
    """

    clients: int = 0
    credits: int = 0
    awaited: int = 0
    queued: int = 0
    cache_bytes: int = 0


@dataclasses.dataclass
class VisionClientCounters:
    """What has happened since the start, written by the client's thread.

    Attributes:
      asked: distinct tiles of requests.
      cached: those of them for which nothing had to come.
      received: tiles' features.
      received_bytes: of features.
      sent_bytes: of pixels.
      moved: requests that went to another server.
      lost: connections.
      failed: requests.
    """

    asked: int = 0
    cached: int = 0
    received: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    moved: int = 0
    lost: int = 0
    failed: int = 0


@dataclasses.dataclass(frozen=True)
class VisionClientState:
    """What is there at a moment.

    Attributes:
      servers: vision servers that can be asked.
      requests: in progress, the waiting ones included.
      waiting: requests that wait for a server, for credits or for room.
      credits: tiles that servers were asked for and that have not come.
      reserved_bytes: of features that requests in progress may come to.
      cache_bytes: of features.
    """

    servers: int = 0
    requests: int = 0
    waiting: int = 0
    credits: int = 0
    reserved_bytes: int = 0
    cache_bytes: int = 0
