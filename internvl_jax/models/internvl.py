"""InternVL: tiles -> InternViT -> pixel shuffle -> projector; the features replace the <IMG_CONTEXT> embeddings of the
tokens; then the language model, causal over image tokens too. Up to the features it is the vision half, from there on
the language half, and each can live without the other.

A Flash model has two branches for a tile, of 256 or 64 features, and a router that says which one is enough.

Source: InternVL3.5 paper (arXiv 2508.18265) sections 2.1, 2.3 and the released modeling_internvl_chat.py.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from internvl_jax.errors import InputError
from internvl_jax.models.attention.caches import Cache
from internvl_jax.models.bricks.nn import along
from internvl_jax.models.config import InternVLConfig, TextConfig
from internvl_jax.models.language.decoder import Decoder
from internvl_jax.models.stack import Runtime
from internvl_jax.models.transforms.adapter_places import AdapterPlaces, add_places
from internvl_jax.models.transforms.lora import adapt
from internvl_jax.models.transforms.lora_config import plain_path
from internvl_jax.models.transforms.quantised_names import stored_dtype
from internvl_jax.models.transforms.quantised_weights import quantise, round_products
from internvl_jax.models.vision.intern_vit import InternViT
from internvl_jax.models.vision.projector import CompressedProjector, Projector, pixel_shuffle
from internvl_jax.models.vision.router import Router
from internvl_jax.sharding import Placement, Rules, bind, flatten, places, shard, spread, structure

# ImageNet statistics, of pixels scaled to 0..1.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoded(NamedTuple):
    """Image features of tiles, in the language model's width.

    Attributes:
      features_GPD: features at full resolution.
      compressed_GPD: fewer features a tile, from the compressed branch; only Flash models have them.
      route_G2: the router's logits for compressing a tile and for not doing so, float32; only Flash models have them.
    """

    features_GPD: jax.Array
    compressed_GPD: jax.Array | None
    route_G2: jax.Array | None

    @property
    def pool_GPD(self) -> jax.Array:
        """The features of both branches side by side, those at full resolution first."""
        if self.compressed_GPD is None:
            return self.features_GPD
        return jnp.concatenate([self.features_GPD, self.compressed_GPD], axis=1)

    @property
    def probability_G(self) -> jax.Array | None:
        """The router's probability of compressing a tile, float32; None without a router."""
        return None if self.route_G2 is None else jax.nn.softmax(self.route_G2)[:, 0]


class Slots(NamedTuple):
    """Which tiles feed the image tokens of rows, in the order of the tokens. Several slots may show one tile, so the
    responses to one picture share its pass through the tower.

    Attributes:
      tile_BJ: int32, the number of a tile among those of its row; -1 for a slot without tokens.
      compress_BJ: bool, True where the slot takes the tile's compressed features; None: no slot does.
    """

    tile_BJ: jax.Array
    compress_BJ: jax.Array | None

    @classmethod
    def in_order(cls, tile_mask_G: jax.Array, compress_G: jax.Array, rows: int) -> "Slots":
        """Every real tile once."""
        mask_BJ, compress_BJ = (jnp.asarray(part).reshape(rows, -1) for part in (tile_mask_G, compress_G))
        numbers_BJ = jnp.broadcast_to(jnp.arange(mask_BJ.shape[1], dtype=jnp.int32)[None], mask_BJ.shape)
        return cls(jnp.where(mask_BJ, numbers_BJ, -1), compress_BJ)


class Out(NamedTuple):
    """What a pass returns.

    Attributes:
      hidden_BTD: hidden states after the final norm; `InternVL.logits` makes logits of them.
      cache: the given cache with the keys and values of this call, or None.
      aux: intermediates that were asked for, by name ('kv', 'hidden', 'router', 'experts', 'load'); the others None.
    """

    hidden_BTD: jax.Array
    cache: Cache | None
    aux: dict[str, Any]


class VisionHalf(nnx.Module):
    """Tiles -> image features: tower, projector and, in Flash models, compressed branch and router."""

    def __init__(self, config: InternVLConfig, rngs: nnx.Rngs, runtime: Runtime | None = None):
        runtime = runtime or Runtime()
        self.config, self.runtime = config, runtime
        self.vit = InternViT(config.vision, rngs, runtime)
        inputs = config.vision.width * config.shuffle**2
        self.projector = Projector(inputs, config.text.width, rngs, config.text.init_std)
        if config.flash is None:
            self.compressed = self.router = None
        else:
            inputs, width, init_std = 4 * inputs, config.text.width, config.text.init_std
            self.compressed = CompressedProjector(inputs, width, config.flash.dropout, rngs, init_std)
            self.router = Router(config.vision.width, config.flash, rngs, init_std, runtime)

    def encode(self, tiles_GHWC: jax.Array, key: jax.Array | None = None) -> Encoded:
        """Image features of tiles.

        Args:
          tiles_GHWC: uint8 RGB, or float already normalised with the ImageNet statistics.
          key: randomness of drop path and, in Flash models, dropout; None outside training.
        """
        return self.branches(self.patches(tiles_GHWC, key), key)

    def branches(self, x_GPD: jax.Array, key: jax.Array | None = None) -> Encoded:
        """The second half of `encode`, from `patches` on."""
        features_GPD = self.projector(_join(x_GPD, self.config.shuffle))
        if self.router is None:
            return Encoded(features_GPD, None, None)
        # The tower splits the key itself: its numbers are those of the model without these parts.
        keys = [None if key is None else jax.random.fold_in(key, number) for number in (1, 2)]
        compressed_GPD = self.compressed(_join(x_GPD, self.config.compressed_shuffle), keys[0])
        return Encoded(features_GPD, compressed_GPD, self.router(x_GPD, keys[1]))

    def patches(self, tiles_GHWC: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """`[G, P, D]`: the tower's features of all patches, which the branches and the router start from."""
        groups = self.runtime.tile_groups
        if groups == 1:
            return self.vit(normalise(tiles_GHWC, self.runtime.dtype), key)[:, 1:]
        if len(tiles_GHWC) % (groups * spread("tiles")):
            raise InputError(
                f"run.tile_groups {groups} can't split {len(tiles_GHWC)} tiles on {spread('tiles')} devices; give a "
                "number that divides a device's tiles"
            )

        @jax.checkpoint
        def one_group(tiles_GHWC: jax.Array, number: jax.Array) -> jax.Array:
            own = None if key is None else jax.random.fold_in(key, number)
            return self.vit(normalise(tiles_GHWC, self.runtime.dtype), own)[:, 1:]

        # Group j has tiles j, j + groups, ...: each device keeps its own.
        split = tiles_GHWC.reshape(-1, groups, *tiles_GHWC.shape[1:]).swapaxes(0, 1)
        _, x = jax.lax.scan(lambda _, given: (None, one_group(*given)), None, (split, jnp.arange(groups)))
        return shard(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), "tiles", None, None)


class LanguageHalf(nnx.Module):
    """Tokens and image features -> logits: the language model."""

    def __init__(self, config: InternVLConfig, rngs: nnx.Rngs, runtime: Runtime | None = None):
        runtime = runtime or Runtime()
        self.config, self.runtime = config, runtime
        self.lm = Decoder(config.text, rngs, runtime)

    def embed(self, tokens_BT: jax.Array, features_BPD: jax.Array | None) -> jax.Array:
        """Token embeddings, the n-th <IMG_CONTEXT> of a row being the row's n-th image feature.

        Whether a row has as many features as such tokens can't be seen here: who builds the row checks it.
        """
        x_BTD = self.lm.lookup(tokens_BT)
        if features_BPD is None:
            return x_BTD
        image_BT = tokens_BT == self.config.image_token_id
        index_BT = jnp.clip(jnp.cumsum(image_BT, axis=1) - 1, 0, features_BPD.shape[1] - 1)
        placed_BTD = jnp.take_along_axis(features_BPD, index_BT[:, :, None], axis=1)
        return shard(jnp.where(image_BT[:, :, None], placed_BTD.astype(x_BTD.dtype), x_BTD), "batch", "time", None)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """`[..., D] -> [..., V]`, float32."""
        return self.lm.logits(hidden)


class InternVL(VisionHalf, LanguageHalf):
    """Both halves. A half has the parameters that it has here, under the same paths."""

    def __init__(self, config: InternVLConfig, rngs: nnx.Rngs, runtime: Runtime | None = None):
        VisionHalf.__init__(self, config, rngs, runtime)
        LanguageHalf.__init__(self, config, rngs, runtime)

    def __call__(
        self,
        tokens_BT: jax.Array,
        tiles_GHWC: jax.Array,
        tile_mask_G: jax.Array,
        segments_BT: jax.Array,
        positions_BT: jax.Array,
        key: jax.Array | None = None,
        collect: tuple[str, ...] = (),
        slots: Slots | None = None,
    ) -> Out:
        """A pass over whole rows.

        Args:
          tokens_BT: int32 ids.
          tiles_GHWC: as in `encode`; G is B times the tiles per row, row b owning block b. G may be 0.
          tile_mask_G: False where a tile is padding; the others feed the row's image tokens in order.
          segments_BT: 1.. per packed sample, 0 for padding.
          positions_BT: restart in every segment.
          key, collect: see `encode` and `Decoder`.
          slots: see `Slots`; None shows every real tile once, at full resolution.
        """
        encoded = self.encode(tiles_GHWC, key) if len(tiles_GHWC) else None
        rows = tokens_BT, tile_mask_G, segments_BT, positions_BT
        return self.read(encoded, *rows, collect, slots)

    def read(
        self,
        encoded: Encoded | None,
        tokens_BT: jax.Array,
        tile_mask_G: jax.Array,
        segments_BT: jax.Array,
        positions_BT: jax.Array,
        collect: tuple[str, ...] = (),
        slots: Slots | None = None,
        replay_LBTK: jax.Array | None = None,
    ) -> Out:
        """The second half of a pass, from `encode` on, whose result is None where there are no tiles.

        Args:
          replay_LBTK: see `Decoder`; the rest as in `__call__`.
        """
        B, T = tokens_BT.shape
        if encoded is None:
            features_BPD = None
        elif slots is None:
            features_BPD = _real_first(encoded.features_GPD, tile_mask_G, B)
        else:
            features_BPD = _chosen(encoded, slots, T)
        if features_BPD is not None:  # where a row lies on several devices, its tokens may be anywhere
            features_BPD = shard(features_BPD, "batch", None, None)
        x_BTD = self.embed(tokens_BT, features_BPD)
        out = self.lm(x_BTD, segments_BT, positions_BT, collect=collect, replay_LBTK=replay_LBTK)
        aux = {
            "kv": out.kv_LBMTH,
            "hidden": out.hidden_LBTD,
            "router": out.router_LBTE,
            "experts": out.experts_LBTK,
            "load": out.load,
        }
        return Out(out.hidden_BTD, out.cache, aux)


@dataclasses.dataclass(frozen=True)
class _Made:
    """Makes a kind of model from (config, rngs, runtime), with the config's transforms and the runtime's places."""

    kind: Callable[..., VisionHalf | LanguageHalf]

    def __call__(
        self, config: InternVLConfig, rngs: nnx.Rngs, runtime: Runtime | None = None
    ) -> VisionHalf | LanguageHalf:
        model = self.kind(config, rngs, runtime)
        if config.lora is not None:
            adapt(model, config.lora, rngs)
        if model.runtime.adapters is not None:
            add_places(model, model.runtime.adapters, rngs)
        if config.quantised is not None:
            quantise(model, config.quantised)
        if model.runtime.products == "int8":
            round_products(model)
        return model


# What of a model may be loaded by itself.
PartName = Literal["all", "vision", "language"]
PARTS: dict[PartName, Callable[..., VisionHalf | LanguageHalf]] = {
    "all": _Made(InternVL),
    "vision": _Made(VisionHalf),
    "language": _Made(LanguageHalf),
}


def with_places(model: LanguageHalf, adapters: AdapterPlaces) -> LanguageHalf:
    """The model, which becomes this one, with empty places for adapters beside its own weights.

    Raises:
      InputError: it has an adapter.
    """
    if model.config.lora is not None:
        raise InputError("the model has an adapter already; merge that first (launch.convert), or give its base")
    kind = PARTS["all" if isinstance(model, VisionHalf) else "language"]
    graphdef, specs = structure(kind, model.config, dataclasses.replace(model.runtime, adapters=adapters))
    where, params = places(specs, model.runtime.placement), flatten(model)
    empty = lambda path: jnp.zeros(specs[path].shape, stored_dtype(path, model.runtime.dtype), device=where[path])
    plain = {path: plain_path(path) for path in specs}
    return bind(graphdef, {path: empty(path) if name is None else params[name] for path, name in plain.items()})


def place(text: TextConfig | None, mesh: Any, rules: Rules | str | None) -> Placement | None:
    """Where a model with such a language model answers, or a vision half without any; see `Placement.of`. What the mesh
    does not divide of the vocabulary, the experts and the key/value heads lies whole on more devices.
    """
    if text is None:
        return Placement.of(mesh, rules, 0, {})
    sizes = {"vocab": text.vocab, "act_vocab": text.vocab, "kv_heads": text.kv_heads}
    if text.moe is not None:
        sizes["expert"] = text.moe.experts
    return Placement.of(mesh, rules, text.heads, sizes)


def normalise(tiles_GHWC: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """uint8 pixels to normalised ones; float tiles pass."""
    if tiles_GHWC.dtype != jnp.uint8:
        return tiles_GHWC.astype(dtype)
    pixels = tiles_GHWC.astype(jnp.float32) / 255
    mean, std = (along(jnp.array(part), pixels) for part in (_MEAN, _STD))
    return ((pixels - mean) / std).astype(dtype)


def _join(x_GPD: jax.Array, side: int) -> jax.Array:
    """Pixel shuffle of square tiles: `[G, P, D] -> [G, P / side**2, side**2 * D]`."""
    G, P, D = x_GPD.shape
    rows = math.isqrt(P)
    x = pixel_shuffle(x_GPD.reshape(G, rows, rows, D), side)
    return x.reshape(G, -1, x.shape[-1])


def _real_first(features_GPD: jax.Array, tile_mask_G: jax.Array, rows: int) -> jax.Array:
    """`[B, P, D]`: every row's features with those of real tiles first, in order."""
    G, P, D = features_GPD.shape
    order_BG = jnp.argsort(~tile_mask_G.reshape(rows, -1), axis=1, stable=True)
    features = jnp.take_along_axis(features_GPD.reshape(rows, G // rows, P, D), order_BG[:, :, None, None], axis=1)
    return features.reshape(rows, -1, D)


def _chosen(encoded: Encoded, slots: Slots, T: int) -> jax.Array:
    """`[B, P, D]`: the features of a row's slots one after the other, each from the branch that was chosen for it. They
    end where a row of T tokens could take no more.
    """
    B, J = slots.tile_BJ.shape
    (P, D), width = encoded.features_GPD.shape[1:], encoded.pool_GPD.shape[1]
    pool_BPD = encoded.pool_GPD.reshape(B, -1, D)
    compress_BJ = jnp.zeros((B, J), bool) if slots.compress_BJ is None else slots.compress_BJ
    counts_BJ = jnp.where(slots.tile_BJ >= 0, jnp.where(compress_BJ, width - P, P), 0)
    ends_BJ = jnp.cumsum(counts_BJ, axis=1)
    number_P = jnp.arange(min(J * P, T))
    # Feature n of a row lies in the first slot that ends after it. Beyond the last slot nobody reads what is there.
    slot_BP = jnp.minimum(jnp.sum(number_P[None, :, None] >= ends_BJ[:, None, :], axis=2), J - 1)
    start_BJ = slots.tile_BJ * width + jnp.where(compress_BJ, P, 0) - (ends_BJ - counts_BJ)
    index_BP = jnp.take_along_axis(start_BJ, slot_BP, axis=1) + number_P[None]
    index_BP = jnp.clip(index_BP, 0, pool_BPD.shape[1] - 1)
    return jnp.take_along_axis(pool_BPD, index_BP[:, :, None], axis=1)
