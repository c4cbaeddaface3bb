"""InternVL: tiles -> InternViT -> pixel shuffle -> projector; the features replace the <IMG_CONTEXT> embeddings of the
tokens; then the language model, causal over image tokens too.

Source: InternVL3.5 paper (arXiv 2508.18265) section 2.1 and the released modeling_internvl_chat.py.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from internvl_jax.models.cache import Cache
from internvl_jax.models.config import InternVLConfig
from internvl_jax.models.decoder import Decoder
from internvl_jax.models.intern_vit import InternViT
from internvl_jax.models.nn import along, product
from internvl_jax.models.projector import Projector, pixel_shuffle
from internvl_jax.models.stack import Runtime
from internvl_jax.sharding import shard

# ImageNet statistics, of pixels scaled to 0..1.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Out(NamedTuple):
    """Attributes:
    hidden_BTD: after the final norm; `InternVL.logits` turns it into logits.
    cache: the given one with this call's keys and values, or None.
    aux: named intermediates that were asked for ('kv', 'hidden', 'router').
    """

    hidden_BTD: jax.Array
    cache: Cache | None
    aux: dict[str, Any]


class InternVL(nnx.Module):
    def __init__(self, config: InternVLConfig, rngs: nnx.Rngs, runtime: Runtime | None = None):
        runtime = runtime or Runtime()
        self.config, self.runtime = config, runtime
        self.vit = InternViT(config.vision, rngs, runtime)
        inputs = config.vision.width * config.shuffle**2
        self.projector = Projector(inputs, config.text.width, rngs, config.text.init_std)
        self.lm = Decoder(config.text, rngs, runtime)

    def encode(self, tiles_GHWC: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Image features of tiles.

        Args:
          tiles_GHWC: uint8 RGB, or float already normalised with the ImageNet statistics.
          key: drop-path randomness; None outside training.

        Returns:
          `[G, tokens per tile, D]` in the language model's width.
        """
        x_GPD = self.vit(normalise(tiles_GHWC, self.runtime.dtype), key)[:, 1:]
        G, P, D = x_GPD.shape
        side = math.isqrt(P)  # tiles are square
        x = pixel_shuffle(x_GPD.reshape(G, side, side, D), self.config.shuffle)
        return self.projector(x.reshape(G, -1, x.shape[-1]))

    def embed(self, tokens_BT: jax.Array, features_BKD: jax.Array | None) -> jax.Array:
        """Token embeddings, the n-th <IMG_CONTEXT> of a row being the row's n-th image feature.

        Whether a row has as many features as such tokens can't be seen here: who builds the row checks it.
        """
        x_BTD = self.lm.lookup(tokens_BT)
        if features_BKD is None:
            return x_BTD
        image_BT = tokens_BT == self.config.image_token_id
        index_BT = jnp.clip(jnp.cumsum(image_BT, axis=1) - 1, 0, features_BKD.shape[1] - 1)
        placed_BTD = jnp.take_along_axis(features_BKD, index_BT[:, :, None], axis=1)
        return shard(jnp.where(image_BT[:, :, None], placed_BTD.astype(x_BTD.dtype), x_BTD), "batch", "time", None)

    def __call__(
        self,
        tokens_BT: jax.Array,
        tiles_GHWC: jax.Array,
        tile_mask_G: jax.Array,
        segments_BT: jax.Array,
        positions_BT: jax.Array,
        key: jax.Array | None = None,
        collect: tuple[str, ...] = (),
    ) -> Out:
        """A pass over whole rows.

        Args:
          tokens_BT: int32 ids.
          tiles_GHWC: as in `encode`; G is B times the tiles per row, row b owning block b. G may be 0.
          tile_mask_G: False where a tile is padding; the others feed the row's image tokens in order.
          segments_BT: 1.. per packed sample, 0 for padding.
          positions_BT: restart in every segment.
          key, collect: see `encode` and `Decoder`.
        """
        B, G = tokens_BT.shape[0], tiles_GHWC.shape[0]
        features_BKD = None
        if G:
            features_GPD = self.encode(tiles_GHWC, key)
            features_BKD = _real_first(features_GPD, tile_mask_G, B)
        out = self.lm(self.embed(tokens_BT, features_BKD), segments_BT, positions_BT, collect=collect)
        aux = {"kv": out.kv_LBMTH, "hidden": out.hidden_LBTD, "router": out.router_LBTE}
        return Out(out.hidden_BTD, out.cache, aux)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """`[..., D] -> [..., V]`, float32."""
        return product(hidden, self.lm.head_VD.astype(hidden.dtype))


def normalise(tiles_GHWC: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """uint8 pixels to normalised ones; float tiles pass."""
    if tiles_GHWC.dtype != jnp.uint8:
        return tiles_GHWC.astype(dtype)
    pixels = tiles_GHWC.astype(jnp.float32) / 255
    mean, std = (along(jnp.array(part), pixels) for part in (_MEAN, _STD))
    return ((pixels - mean) / std).astype(dtype)


def _real_first(features_GPD: jax.Array, tile_mask_G: jax.Array, rows: int) -> jax.Array:
    """`[B, K, D]`: every row's features with those of real tiles first, in order."""
    G, P, D = features_GPD.shape
    order_BG = jnp.argsort(~tile_mask_G.reshape(rows, -1), axis=1, stable=True)
    features = jnp.take_along_axis(features_GPD.reshape(rows, G // rows, P, D), order_BG[:, :, None, None], axis=1)
    return features.reshape(rows, -1, D)
