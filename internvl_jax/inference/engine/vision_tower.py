"""Tiles to features: the program of it, and the vision half of a model by itself, whose features another one reads."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import lax

from internvl_jax import sharding
from internvl_jax.errors import InputError
from internvl_jax.inference.engine.buckets import Ladders, fit
from internvl_jax.inference.engine.device_program import DeviceProgram
from internvl_jax.inference.engine.row_state import Features
from internvl_jax.models import InternVLConfig, VisionHalf
from internvl_jax.sharding import Params, bind, flatten, shard, whole

_CACHED_BYTES = 1 << 22  # of activations, about what a CPU's cache holds


def encode_tiles(config: InternVLConfig, graphdef: nnx.GraphDef, params: Params, tiles_GHWC: jax.Array) -> Features:
    """What the vision half of a model makes of tiles; to be traced.

    Args:
      graphdef, params: a model that has that half.
      tiles_GHWC: see `VisionHalf.encode`.
    """
    model = bind(graphdef, params)

    def together(tiles_GHWC: jax.Array) -> Features:
        encoded = model.encode(tiles_GHWC)
        return Features(encoded.pool_GPD, encoded.probability_G)

    def few_by_few(tiles_GHWC: jax.Array) -> Features:
        vision, G = config.vision, len(tiles_GHWC)
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        fitting = max(1, _CACHED_BYTES // (4 * patches * vision.mlp))
        size = max(count for count in range(1, min(G, fitting) + 1) if G % count == 0)
        features = lax.map(together, tiles_GHWC.reshape(G // size, size, *tiles_GHWC.shape[1:]))
        return jax.tree.map(lambda x: x.reshape(G, *x.shape[2:]), features)

    if sharding.meshed():  # the devices of a mesh take tiles each
        features = together(tiles_GHWC)
        return features._replace(probability_G=jax.tree.map(whole, features.probability_G))
    # Activations of a few tiles stay nearer to the CPU's cache, those of one of the released towers: 1.2 times as
    # fast, 1.3 in bfloat16, and less memory.
    return lax.platform_dependent(tiles_GHWC, cpu=few_by_few, default=together)


class EncodedTiles(NamedTuple):
    """Features of tiles on the host, in the dtype of the model that made them.

    Attributes:
      features_GPD: those at full resolution.
      compressed_GPD: fewer for a tile; None unless the model is a Flash model.
      probability_G: float32, the router's probability that a tile may be compressed; None unless it is a Flash model.
    """

    features_GPD: np.ndarray
    compressed_GPD: np.ndarray | None
    probability_G: np.ndarray | None


class VisionTower:
    """The vision half of a model, for an engine elsewhere (`RemoteFeatures`).

    Of as many tiles at a time, its features have the bits that an engine's own tower would give them: it is the same
    program. Where a mesh spans several processes, all of them make the same calls.

    Args:
      model: a vision half, or a whole model; its parameters lie on one device, or on the mesh of its runtime.
      sizes: the numbers of tiles that a program is compiled for, rising.

    Attributes:
      config: the model's config.
      sizes: as the devices of the mesh can share them.
    """

    def __init__(self, model: VisionHalf, sizes: Sequence[int] = (1, 2, 4, 8, 16, 32)):
        self.config, self._dtype, self._place = model.config, model.runtime.dtype, model.runtime.placement
        with sharding.placed(self._place):
            self.sizes = Ladders(tiles=tuple(sizes)).divisible(1, sharding.spread("tiles")).tiles
        self._graphdef, self._params = nnx.split(model, nnx.Param)[0], flatten(model)
        self._program = DeviceProgram(self._encode)

    @property
    def num_compiled(self) -> int:
        """Programs compiled so far."""
        return self._program.num_compiled

    def warm_up(self) -> int:
        """Compiles for every number of tiles; returns how many programs there are."""
        side = self.config.vision.image_size
        for size in self.sizes:
            self.encode(np.zeros((size, side, side, 3), np.uint8))
        return self.num_compiled

    def encode(self, tiles_GHWC: np.ndarray) -> EncodedTiles:
        """Features of tiles, uint8 RGB; as many at a time as the largest size, and padded up to a size.

        Raises:
          InputError: tiles of another size or type than the model's.
        """
        side, config = self.config.vision.image_size, self.config
        if tiles_GHWC.shape[1:] != (side, side, 3) or tiles_GHWC.dtype != np.uint8:
            raise InputError(
                f"the tiles are {tiles_GHWC.dtype} of shape {tiles_GHWC.shape}; the model's are uint8 of shape "
                f"{('tiles', side, side, 3)}"
            )
        parts = np.split(tiles_GHWC, range(self.sizes[-1], len(tiles_GHWC), self.sizes[-1]))
        flying = [(len(part_GHWC), self._features(part_GHWC)) for part_GHWC in parts if len(part_GHWC)]
        full, compressed = config.tokens_per_tile, config.tokens_per_compressed_tile if config.flash else 0
        pools = [np.zeros((0, full + compressed, config.text.width), self._dtype)]
        probabilities = [np.zeros(0, np.float32)]
        for count, features in flying:
            pools.append(np.asarray(features.pool_GPD)[:count])
            if config.flash is not None:
                probabilities.append(np.asarray(features.probability_G)[:count])
        pool_GPD = np.concatenate(pools)
        if config.flash is None:
            return EncodedTiles(pool_GPD, None, None)
        return EncodedTiles(pool_GPD[:, :full], pool_GPD[:, full:], np.concatenate(probabilities))

    def _features(self, tiles_GHWC: np.ndarray) -> Features:
        size = fit("image tiles", len(tiles_GHWC), self.sizes)
        padded_GHWC = tiles_GHWC[np.minimum(np.arange(size), len(tiles_GHWC) - 1)]
        with sharding.placed(self._place):
            return self._program(self._params, padded_GHWC)

    def _encode(self, params: Params, tiles_GHWC: jax.Array) -> Features:
        features = encode_tiles(self.config, self._graphdef, params, tiles_GHWC)
        # Made where the tiles are, then gathered: the host of every process takes all of it.
        return features._replace(pool_GPD=whole(shard(features.pool_GPD, "tiles", None, None)))
