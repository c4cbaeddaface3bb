"""Models of the InternVL3.5 family and the bricks that they are built of.

Shapes stand in names: `hidden_BTD` is `[B, T, D]`. The key, for the whole project; a digit is a dimension of that size,
and what has no letter here is written as a word.

    A  answers to a prompt (a group)
    B  rows of a batch
    D  width of the model
    E  experts
    F  width of a feed-forward layer
    G  tiles
    H  width of a head
    I  items on the host: samples of a data set, pairs
    J  a row's slots for tiles, in the order of its image tokens
    K  experts that a token takes
    L  layers
    M  key/value heads
    N  query heads
    P  patches of a tile, or the image tokens that they become; of a row those of all its tiles
    Q  prompts (questions)
    R  query heads of a key/value head
    S  keys: slots of a cache, positions of an answer in it
    T  tokens: positions of a row
    U  choices of experts by tokens, sorted by expert
    V  vocabulary
    W  values in a window of the last ones
    X  texts of a row (its segments)
    Y  pairs of a row
    Z  ids that end an answer

HWC (or CHW), always together, are height, width and channels of pictures.
"""

from internvl_jax.models import scopes
from internvl_jax.models.attention.attention import left_out, row_unit
from internvl_jax.models.attention.blocks import share
from internvl_jax.models.attention.cache import SlotCache
from internvl_jax.models.attention.caches import Cache
from internvl_jax.models.attention.group_cache import GroupCache
from internvl_jax.models.attention.page_cache import PageCache, check_kernel
from internvl_jax.models.config import (
    FLASH_PARTS,
    UNUSED_PARTS,
    FlashConfig,
    InternVLConfig,
    MoeConfig,
    NtkConfig,
    TextConfig,
    VisionConfig,
    YarnConfig,
    with_quantised,
)
from internvl_jax.models.flops import PEAK, seen_keys, tile_flops, token_flops, train_flops
from internvl_jax.models.internvl import (
    PARTS,
    Encoded,
    InternVL,
    LanguageHalf,
    Out,
    PartName,
    Slots,
    VisionHalf,
    place,
    with_places,
)
from internvl_jax.models.language.decoder import DecoderOut
from internvl_jax.models.language.families import FAMILIES, family_of, kind_of
from internvl_jax.models.language.families.record import Family, Key, ModelKind, Released
from internvl_jax.models.logprobs import over_logits, token_logprobs, token_statistics
from internvl_jax.models.stack import CACHES, CacheName, Offload, Products, Remat, Runtime
from internvl_jax.models.stored import read_plain, read_stored
from internvl_jax.models.transforms.adapter_places import (
    NO_PLACE,
    AdapterPlaces,
    bind_for_rows,
    for_one_place,
    put_in_place,
    rank_axis,
    stacks_of,
)
from internvl_jax.models.transforms.lora import difference, merged, with_dropout
from internvl_jax.models.transforms.lora_config import (
    NO_MATRICES,
    AdaptedWeight,
    LoraConfig,
    adapted_path,
    plain_path,
)
from internvl_jax.models.transforms.quantised_names import (
    QUANTISED,
    Quantised,
    is_quantised,
    quantised_as,
    stored_dtype,
    weight_path,
)
from internvl_jax.models.transforms.quantised_weights import quantised_slices
from internvl_jax.models.transforms.unstack import unstack, unstack_params
from internvl_jax.models.vision.intern_vit import InternViT

__all__ = [
    "AdaptedWeight",
    "AdapterPlaces",
    "CACHES",
    "Cache",
    "CacheName",
    "DecoderOut",
    "Encoded",
    "FAMILIES",
    "FLASH_PARTS",
    "Family",
    "FlashConfig",
    "GroupCache",
    "InternVL",
    "InternVLConfig",
    "InternViT",
    "Key",
    "LanguageHalf",
    "LoraConfig",
    "ModelKind",
    "MoeConfig",
    "NO_MATRICES",
    "NO_PLACE",
    "NtkConfig",
    "Offload",
    "Products",
    "Out",
    "QUANTISED",
    "Quantised",
    "PARTS",
    "PEAK",
    "PageCache",
    "PartName",
    "Released",
    "Remat",
    "Runtime",
    "SlotCache",
    "Slots",
    "TextConfig",
    "UNUSED_PARTS",
    "VisionConfig",
    "VisionHalf",
    "YarnConfig",
    "adapted_path",
    "bind_for_rows",
    "check_kernel",
    "difference",
    "family_of",
    "for_one_place",
    "is_quantised",
    "kind_of",
    "left_out",
    "merged",
    "over_logits",
    "place",
    "plain_path",
    "put_in_place",
    "quantised_as",
    "quantised_slices",
    "rank_axis",
    "read_plain",
    "read_stored",
    "row_unit",
    "scopes",
    "seen_keys",
    "share",
    "stacks_of",
    "stored_dtype",
    "tile_flops",
    "token_flops",
    "token_logprobs",
    "token_statistics",
    "train_flops",
    "unstack",
    "unstack_params",
    "weight_path",
    "with_dropout",
    "with_places",
    "with_quantised",
]
