"""A request at the vision server: what it still lacks, what is compressed, what can be sent."""

import math

import numpy as np

from internvl_jax.inference import Thresholds
from internvl_jax.models import FlashConfig
from internvl_jax.serving.dvd.feature_cache import FeatureCache
from internvl_jax.serving.dvd.tile_queue import TileResult
from internvl_jax.serving.dvd.wire_messages import COMPRESSED, DTYPES, FULL, EncodeTiles, KeptFeatures, TileShape

_CODES = {dtype: code for code, dtype in DTYPES.items()}


class TileOrder:
    """The state of an ENCODE.

    Args:
      message: what the client asks for.
      shape: of the model's tiles.
      flash: the router's config; None without one.

    Attributes:
      unsent: distinct names that the client has no answer for yet; each holds a credit.
      asked: names whose pixels the client was asked for.
    """

    def __init__(self, message: EncodeTiles, shape: TileShape, flash: FlashConfig | None):
        self.request, self._shape, self._flash = message.request, shape, flash
        self._names = tuple(entry.name for entry in message.entries)
        self._there = {entry.name: entry.mark for entry in message.entries}
        self._known = {e.name: e.probability for e in message.entries if not math.isnan(e.probability)}
        own = [None if math.isnan(number) else number for number in (message.relative, message.absolute)]
        self._thresholds = Thresholds(*own)
        self._results = dict[bytes, TileResult]()
        self._compress: dict[bytes, bool] | None = None if flash else dict.fromkeys(self._names, False)
        self.unsent = dict.fromkeys(self._names)
        self.asked = set[bytes]()

    def take(self, result: TileResult) -> None:
        """Takes over a tile that has passed the tower."""
        if result.name in self.unsent:
            self._results[result.name] = result
            if self._flash:
                self._known.setdefault(result.name, result.probability)

    def advance(self, cache: FeatureCache) -> tuple[list[KeptFeatures], list[bytes]]:
        """What can be sent now, and the names of tiles that have to pass the tower before more can.

        What is sent is no longer in `unsent`.
        """
        if self._compress is None and (unknown := self._decide(cache)):
            return [], unknown
        sent, lacking = list[KeptFeatures](), list[bytes]()
        for name in self.unsent:
            compressed = self._compress[name]
            if self._there[name] & (COMPRESSED if compressed else FULL):
                sent.append(self._features(name, None))
            elif (values_PD := self._values(name, compressed, cache)) is not None:
                sent.append(self._features(name, values_PD))
            else:
                lacking.append(name)
        for features in sent:
            del self.unsent[features.name]
            self._results.pop(features.name, None)
        return sent, lacking

    def _decide(self, cache: FeatureCache) -> list[bytes]:
        """Decides if all probabilities are there; else the names of those that are not."""
        for name in self.unsent:
            if name not in self._known and (probability := cache.probability(name)) is not None:
                self._known[name] = probability
        unknown = [name for name in self.unsent if name not in self._known]
        if not unknown:
            probability_G = np.array([self._known[name] for name in self._names], np.float32)
            compress_G = self._thresholds.decide(probability_G, self._flash)
            self._compress = dict(zip(self._names, compress_G.tolist(), strict=True))
        return unknown

    def _values(self, name: bytes, compressed: bool, cache: FeatureCache) -> np.ndarray | None:
        result = self._results.get(name)
        if result is None:
            return cache.get(name, compressed)
        return result.compressed_PD if compressed else result.values_PD

    def _features(self, name: bytes, values_PD: np.ndarray | None) -> KeptFeatures:
        tokens = self._shape.compressed if self._compress[name] else self._shape.tokens
        dtype = 0 if values_PD is None else _CODES[values_PD.dtype]
        probability = self._known.get(name, math.nan)
        return KeptFeatures(self.request, name, probability, tokens, self._shape.width, dtype, values_PD)
