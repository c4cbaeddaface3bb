"""Features of tiles as the engine keeps them, by content: every distinct tile passes the vision tower once, if the
engine has one, or comes once with features that were made elsewhere.
"""

import collections
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from internvl_jax.errors import InputError
from internvl_jax.inference.engine.buckets import fit
from internvl_jax.inference.engine.programs import Programs
from internvl_jax.inference.engine.requests import DIGEST
from internvl_jax.inference.engine.row_state import Features
from internvl_jax.models import InternVLConfig
from internvl_jax.sharding import Params

_FIRST = 16  # tiles that there is room for at first


def digest(tile_HWC: np.ndarray) -> bytes:
    """The name of a tile's content."""
    in_bytes = np.ascontiguousarray(tile_HWC).view(np.uint8)  # of bfloat16 there is no other buffer
    return hashlib.blake2b(in_bytes.data, digest_size=DIGEST).digest()


class TileFeatures:
    """Features of tiles on the device, by the tiles' content; the longest unused ones make room for new ones.

    Args:
      config: the model's config.
      dtype: the dtype of features.
      programs: the model's programs.
      sizes: the numbers of tiles that may be encoded together.
      capacity: how many tiles are kept, at most.
      tower: whether the model has a vision tower.

    Attributes:
      encoded: tiles that passed the tower.
      asked, found: tiles that requests needed, and those of them whose features were there.
    """

    def __init__(
        self,
        config: InternVLConfig,
        dtype: jnp.dtype,
        programs: Programs,
        sizes: tuple[int, ...],
        capacity: int,
        tower: bool = True,
    ):
        compressed = 0 if config.flash is None else config.tokens_per_compressed_tile
        self._shape = (config.tokens_per_tile + compressed, config.text.width)
        self._flash, self._dtype, self.programs, self._sizes = config.flash is not None, dtype, programs, sizes
        self.capacity, self._side, self._tower = capacity, config.vision.image_size, tower
        self._full = config.tokens_per_tile
        self.encoded = self.asked = self.found = 0
        self._kept: frozenset[bytes] = frozenset()
        self._pins: dict[int, frozenset[bytes]] = {}
        self.pool_GPD: jax.Array
        self.renew(min(self._rounded(_FIRST), self._rounded(capacity)))

    def clear(self) -> None:
        """Forgets all features: they belong to other parameters."""
        self._places: collections.OrderedDict[bytes, int] = collections.OrderedDict()
        self._probabilities: dict[bytes, float] = {}
        self._free = list(range(len(self.pool_GPD)))

    def renew(self, tiles: int | None = None) -> None:
        """Room for so many tiles, by default as many as before, whatever became of the memory that they had."""
        size = len(self.pool_GPD) if tiles is None else tiles
        nothing_GPD = np.zeros((0, *self._shape), self._dtype)  # the same in all processes
        self.pool_GPD = self.programs.widen(nothing_GPD, size=size)
        self.clear()

    def reserve(self, tiles: int) -> None:
        """Makes room for so many tiles at a time."""
        there = len(self.pool_GPD)
        if tiles > there:
            size = self._rounded(max(tiles, min(2 * there, self.capacity)))
            self.pool_GPD = self.programs.widen(self.pool_GPD, size=size)
            self._free += range(there, size)

    def warm_up(self, params: Params) -> None:
        """Takes all memory that tiles may have, and compiles for every number of tiles."""
        self.renew(self._rounded(self.capacity))
        side = self._side
        # Programs compile once more for a pool that is not yet committed to where parameters are: the first size twice.
        for size in (self._sizes[0], *self._sizes):
            nowhere_G = np.full(size, 1 << 30, np.int32)
            if self._tower:
                features = self.programs.encode(params, np.zeros((size, side, side, 3), np.uint8))
                self.pool_GPD = self.programs.keep(self.pool_GPD, features.pool_GPD, nowhere_G)
            nothing_GPD = np.zeros((size, *self._shape), self._dtype)
            self.pool_GPD = self.programs.keep(self.pool_GPD, nothing_GPD, nowhere_G)

    def names(self, tiles_GHWC: np.ndarray) -> list[bytes]:
        """The names of tiles for the tower: their digests.

        Raises:
          InputError: there is no tower; see `check`.
        """
        if len(tiles_GHWC) and not self._tower:
            raise InputError(
                "this engine has no vision tower to read tiles with; give the features of a vision server "
                "(Request.features), or load the whole model"
            )
        return self.check([digest(tile_HWC) for tile_HWC in tiles_GHWC])

    def check(self, names: list[bytes]) -> list[bytes]:
        """The names, if so many tiles may be kept at a time.

        Raises:
          InputError: they may not.
        """
        if len(set(names)) > self.capacity:
            raise InputError(
                f"the request has {len(set(names))} tiles, more than the {self.capacity} that are kept at a time; "
                "show fewer pictures or smaller ones"
            )
        return names

    def missing(self, names: Sequence[bytes]) -> list[bytes]:
        """Those whose features are not there, each once."""
        return [name for name in dict.fromkeys(names) if name not in self._places]

    def pin(self, owner: int, names: Sequence[bytes]) -> None:
        """Keeps features that are there or will be, until their owner lets them go."""
        if owner not in self._pins:
            needed = len(set(names))
            self.asked, self.found = self.asked + needed, self.found + needed - len(self.missing(names))
        self._pins[owner] = frozenset(names)

    def unpin(self, owner: int) -> None:
        """Lets go of an owner's features."""
        self._pins.pop(owner, None)

    @property
    def pinned(self) -> int:
        """How many tiles may not be forgotten."""
        return len(frozenset().union(*self._pins.values()))

    def fits(self, names: Sequence[bytes]) -> bool:
        """Whether there is room for these tiles beside the pinned ones."""
        return len(frozenset(names).union(*self._pins.values())) <= self.capacity

    def places(self, names: Sequence[bytes]) -> list[int]:
        """Where features lie in the pool."""
        for name in names:
            self._places.move_to_end(name)
        return [self._places[name] for name in names]

    def index(self, names: Sequence[bytes], sources_T: np.ndarray) -> np.ndarray:
        """int32: for every image token of a prompt, or of a part of it, the place of its feature in the flat pool.

        Args:
          sources_T: see `Seen`.
        """
        sources_P = sources_T[sources_T >= 0]
        if not len(sources_P):
            return sources_P.astype(np.int32)
        width = self.pool_GPD.shape[1]
        places = np.array(self.places(names), np.int32)
        return (places[sources_P // width] * width + sources_P % width).astype(np.int32)

    def probabilities(self, names: Sequence[bytes]) -> np.ndarray:
        """float32 `[G]`, of a Flash model: may the tiles be compressed?"""
        return np.array([self._probabilities[name] for name in names], np.float32)

    def encode(self, params: Params, tiles: dict[bytes, np.ndarray]) -> None:
        """Puts features of tiles that are missing into the pool; all of them must have room beside the pinned ones."""
        self._make_room(len(tiles))
        largest = self._sizes[-1]
        # Stacked with normalised tiles, pixels would become floats, and be taken for normalised ones.
        for kind in {tile_HWC.dtype: None for tile_HWC in tiles.values()}:
            alike = [(name, tile_HWC) for name, tile_HWC in tiles.items() if tile_HWC.dtype == kind]
            for start in range(0, len(alike), largest):
                self._encode(params, dict(alike[start : start + largest]))

    def _encode(self, params: Params, tiles: dict[bytes, np.ndarray]) -> None:
        names, given = list(tiles), list(tiles.values())
        padding = fit("image tiles", len(given), self._sizes) - len(given)
        features: Features = self.programs.encode(params, np.stack(given + given[:1] * padding))
        self._keep(names, features.pool_GPD)
        if self._flash:
            probability_G = np.asarray(features.probability_G)[: len(names)]
            self._probabilities |= zip(names, probability_G.tolist(), strict=True)
        self.encoded += len(names)

    def put(self, features: dict[bytes, np.ndarray]) -> None:
        """Puts features of tiles that were made elsewhere into the pool, as `encode` does.

        Args:
          features: [P, D] for each tile, of one of a Flash model's branches; the name says of which.
        """
        self._make_room(len(features))
        given, largest = list(features.items()), self._sizes[-1]
        for start in range(0, len(given), largest):
            part = dict(given[start : start + largest])
            pool_GPD = np.zeros((fit("image tiles", len(part), self._sizes), *self._shape), self._dtype)
            for pool_PD, given_PD in zip(pool_GPD[: len(part)], part.values(), strict=True):
                first = 0 if len(given_PD) == self._full else self._full  # the compressed branch stands behind
                pool_PD[first : first + len(given_PD)] = given_PD
            self._keep(list(part), pool_GPD)

    def _keep(self, names: list[bytes], new_GPD: jax.Array | np.ndarray) -> None:
        padding = len(new_GPD) - len(names)
        places_G = np.array([self._room() for _ in names] + [1 << 30] * padding, np.int32)
        self.pool_GPD = self.programs.keep(self.pool_GPD, new_GPD, places_G)
        self._places |= zip(names, places_G[: len(names)].tolist(), strict=True)

    def _rounded(self, tiles: int) -> int:
        """As many as the devices of a mesh can share."""
        return -(-tiles // self._sizes[0]) * self._sizes[0]

    def _make_room(self, tiles: int) -> None:
        self._kept = frozenset().union(*self._pins.values())
        self.reserve(len(self._kept.intersection(self._places)) + tiles)

    def _room(self) -> int:
        if not self._free:
            oldest = next(name for name in self._places if name not in self._kept)
            self._free.append(self._places.pop(oldest))
            self._probabilities.pop(oldest, None)
        return self._free.pop()
