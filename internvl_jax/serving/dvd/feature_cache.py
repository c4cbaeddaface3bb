"""Features of tiles on the host, by the tiles' names, and the router's probabilities."""

import collections

import numpy as np

_MOST_PROBABILITIES = 1 << 16


class FeatureCache:
    """The last used features, as many as a number of bytes holds. For one thread.

    Args:
      capacity: bytes.
    """

    def __init__(self, capacity: int):
        self.capacity, self.bytes = capacity, 0
        self._kept: collections.OrderedDict[tuple[bytes, bool], np.ndarray] = collections.OrderedDict()
        self._probabilities: collections.OrderedDict[bytes, float] = collections.OrderedDict()

    def get(self, name: bytes, compressed: bool) -> np.ndarray | None:
        """`[P, D]`, or None if they are not there."""
        found = self._kept.get((name, compressed))
        if found is not None:
            self._kept.move_to_end((name, compressed))
        return found

    def put(self, name: bytes, compressed: bool, values_PD: np.ndarray) -> None:
        """Keeps an array that owns its memory and won't change; the longest unused ones make room."""
        key = (name, compressed)
        if key in self._kept or values_PD.nbytes > self.capacity:
            return
        self._kept[key] = values_PD
        self.bytes += values_PD.nbytes
        while self.bytes > self.capacity:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def probability(self, name: bytes) -> float | None:
        """May the tile be compressed? None if it is not known."""
        found = self._probabilities.get(name)
        if found is not None:
            self._probabilities.move_to_end(name)
        return found

    def note(self, name: bytes, probability: float) -> None:
        """Keeps the probability of a tile."""
        self._probabilities[name] = probability
        if len(self._probabilities) > _MOST_PROBABILITIES:
            self._probabilities.popitem(last=False)
