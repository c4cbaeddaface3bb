"""The tower's thread: tiles of all requests and clients pass it together."""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable

import numpy as np

from internvl_jax.inference import EncodedTiles
from internvl_jax.models import FlashConfig

EncodeCall = Callable[[np.ndarray], EncodedTiles]


@dataclasses.dataclass(frozen=True)
class TileResult:
    """A tile that has passed the tower; its arrays own their memory.

    Attributes:
      values_PD: at full resolution.
      compressed_PD: None without a router.
      probability: None without a router.
    """

    name: bytes
    values_PD: np.ndarray
    compressed_PD: np.ndarray | None
    probability: float | None


@dataclasses.dataclass(frozen=True)
class TowerBatch:
    """What became of tiles that passed the tower together.

    Attributes:
      results: empty if it failed.
      problem: why it failed, or empty.
      waited: seconds that each tile stood in the queue.
      seconds: in the tower.
    """

    names: tuple[bytes, ...]
    results: tuple[TileResult, ...]
    problem: str
    waited: tuple[float, ...]
    seconds: float


class TileQueue:
    """A queue of tiles, and the thread that lets them through the tower.

    Args:
      encode: uint8 `[G, side, side, 3]` to features.
      flash: the router's config; None without one.
      most: tiles in a batch.
      gather: seconds that the first tile of a batch waits for others, at most.
      done: called in the thread after each batch.
      ended: called in the thread when it ends, whatever ended it.
    """

    def __init__(
        self,
        encode: EncodeCall,
        flash: FlashConfig | None,
        most: int,
        gather: float,
        done: Callable[[TowerBatch], None],
        ended: Callable[[], None],
    ):
        self._encode, self._flash, self._most, self._gather = encode, flash, most, gather
        self._done, self._ended = done, ended
        self._waiting: collections.OrderedDict[bytes, tuple[np.ndarray, float]] = collections.OrderedDict()
        self._change = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="vision tower", daemon=True)

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Lets the batch that is in the tower end, and forgets the others."""
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join()

    def put(self, name: bytes, tile_HWC: np.ndarray) -> None:
        """Adds a tile that is not in the queue."""
        with self._change:
            self._waiting[name] = (tile_HWC, time.monotonic())
            self._change.notify()

    def discard(self, name: bytes) -> bool:
        """Takes a tile out again; whether it was still waiting."""
        with self._change:
            return self._waiting.pop(name, None) is not None

    def _run(self) -> None:
        try:
            while batch := self._next():
                self._done(self._pass(batch))
        finally:
            self._ended()

    def _next(self) -> dict[bytes, tuple[np.ndarray, float]]:
        """The next batch; empty at the end."""
        with self._change:
            while not self._stopping:
                if not self._waiting:
                    self._change.wait()
                    continue
                left = next(iter(self._waiting.values()))[1] + self._gather - time.monotonic()
                if left <= 0 or len(self._waiting) >= self._most:
                    return dict(self._waiting.popitem(last=False) for _ in range(min(self._most, len(self._waiting))))
                self._change.wait(left)
            return {}

    def _pass(self, batch: dict[bytes, tuple[np.ndarray, float]]) -> TowerBatch:
        names, start = tuple(batch), time.monotonic()
        waited = tuple(start - came for _, came in batch.values())
        results, problem = tuple[TileResult, ...](), ""
        try:
            # What a device raises is a RuntimeError. A tower that fails with these tiles may pass others.
            results = self._results(names, self._encode(np.stack([tile_HWC for tile_HWC, _ in batch.values()])))
        except (RuntimeError, ValueError, MemoryError) as error:
            problem = f"the tower failed: {type(error).__name__}: {error}"
        return TowerBatch(names, results, problem, waited, time.monotonic() - start)

    def _results(self, names: tuple[bytes, ...], encoded: EncodedTiles) -> tuple[TileResult, ...]:
        if self._flash is None:
            # Copies: a view would keep the whole batch alive.
            parts = zip(names, encoded.features_GPD, strict=True)
            return tuple(TileResult(name, values_PD.copy(), None, None) for name, values_PD in parts)
        both = zip(names, encoded.features_GPD, encoded.compressed_GPD, encoded.probability_G, strict=True)
        return tuple(TileResult(name, full.copy(), small.copy(), float(share)) for name, full, small, share in both)
