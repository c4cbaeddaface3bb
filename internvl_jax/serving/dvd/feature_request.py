"""A request at the language server: what is there of its tiles' features, what is asked for, what becomes of it."""

import concurrent.futures
import math
import time
from collections.abc import Sequence

import numpy as np

from internvl_jax.inference import RemoteFeatures, Thresholds
from internvl_jax.models import FlashConfig
from internvl_jax.serving.dvd.feature_cache import FeatureCache
from internvl_jax.serving.dvd.wire_messages import (
    COMPRESSED,
    FULL,
    EncodeTiles,
    Entry,
    KeptFeatures,
    TileShape,
    WireError,
)


class FeatureRequest:
    """The state of a request.

    Args:
      number: the request's, on the wire.
      names: of its tiles, in order.
      tiles_GHWC: the tiles.
      thresholds: what decides which are compressed.
      flash: the router's config; None without one.

    Attributes:
      answer: comes to hold the features, or why there are none.
      started: when.
      moves: how often another server was asked.
      failed: addresses of servers whose towers failed with it.
      reserved: bytes of features that it may come to; 0 while it waits.
      open: distinct names that a server was asked for and that have not come; each holds a credit.
    """

    def __init__(
        self,
        number: int,
        names: Sequence[bytes],
        tiles_GHWC: np.ndarray,
        thresholds: Thresholds,
        flash: FlashConfig | None,
    ):
        self.number, self.answer = number, concurrent.futures.Future[RemoteFeatures]()
        self.answer.set_running_or_notify_cancel()  # only we end it
        self._names, self._thresholds, self._flash = tuple(names), thresholds, flash
        self._own = thresholds.relative, thresholds.absolute
        self._tiles = dict(zip(names, tiles_GHWC, strict=True))
        self._there = dict[tuple[bytes, bool], np.ndarray]()  # by name and whether compressed
        self._known = dict[bytes, float]()
        self._compress = dict[bytes, bool]()
        self.started, self.moves, self.failed, self.reserved = time.monotonic(), 0, set[str](), 0
        self.open, self._given = set[bytes](), set[bytes]()

    @property
    def distinct(self) -> int:
        """How many different tiles it has."""
        return len(self._tiles)

    @property
    def first(self) -> bytes:
        """The name of its first tile."""
        return self._names[0]

    def look_up(self, cache: FeatureCache) -> None:
        """Takes what the cache has."""
        for name in self._tiles:
            for compressed in (False, True):
                if (name, compressed) not in self._there and (found := cache.get(name, compressed)) is not None:
                    self._there[name, compressed] = found
            if name not in self._known and (probability := cache.probability(name)) is not None:
                self._known[name] = probability

    def decide(self) -> None:
        """Decides what is compressed, if that is known."""
        if self._flash is None:
            self._compress = dict.fromkeys(self._tiles, False)
        elif len(self._known) == len(self._tiles):
            probability_G = np.array([self._known[name] for name in self._names], np.float32)
            compress_G = self._thresholds.decide(probability_G, self._flash)
            self._compress = dict(zip(self._names, compress_G.tolist(), strict=True))

    @property
    def missing(self) -> list[bytes]:
        """Distinct names whose features at the resolution that is kept are not there or not known."""
        return [name for name in self._tiles if (name, self._compress.get(name)) not in self._there]

    def ask(self) -> EncodeTiles:
        """What a server has to be asked; all of it is open from now on."""
        # A router's decision takes all tiles of a request.
        names = self._names if self._flash else self.missing
        self.open, self._given = set(names), set()
        if self._flash:
            self._compress = {}
        thresholds = [math.nan if number is None else number for number in self._own]
        return EncodeTiles(self.number, tuple(self._entry(name) for name in names), *thresholds)

    def tile(self, name: bytes) -> memoryview:
        """The pixels of a tile, once a server.

        Raises:
          WireError: nothing was asked about a tile of that name, or its pixels were given.
        """
        if name not in self.open or name in self._given:
            raise WireError("the vision server asked for a tile that it was not asked about, or twice for one")
        self._given.add(name)
        return np.ascontiguousarray(self._tiles[name]).reshape(-1).data

    def take(self, message: KeptFeatures, shape: TileShape) -> None:
        """Takes features over.

        Raises:
          WireError: they were not asked for, or are said to be here and are not.
        """
        name, compressed = message.name, message.tokens != shape.tokens
        if name not in self.open:
            raise WireError("the vision server sent features of a tile that it was not asked for")
        if message.values_PD is not None:
            self._there[name, compressed] = message.values_PD
        elif (name, compressed) not in self._there:
            raise WireError("the vision server left out features that are not here")
        if self._flash is not None:
            if math.isnan(message.probability):
                raise WireError("the vision server sent features of a tile without the router's probability")
            self._known[name] = message.probability
        self._compress[name] = compressed
        self.open.discard(name)

    def features(self) -> RemoteFeatures:
        """The whole, once nothing is missing."""
        compress_G = np.array([self._compress[name] for name in self._names], bool)
        features = tuple(self._there[name, self._compress[name]] for name in self._names)
        probability_G = None
        if self._flash is not None:
            probability_G = np.array([self._known[name] for name in self._names], np.float32)
        return RemoteFeatures(self._names, compress_G, features, probability_G)

    def _entry(self, name: bytes) -> Entry:
        mark = FULL * ((name, False) in self._there) + COMPRESSED * ((name, True) in self._there)
        return Entry(name, mark, self._known.get(name, math.nan))
