"""Models of the InternVL3.5 family and the bricks that they are built of.

Shapes stand in names. The key, for the whole project: B batch, T query time, S key time, D model width, N query
heads, M key/value heads, H head width, F feed-forward width, V vocabulary, E experts, L layers, G tiles, P patches,
C channels.
"""

from internvl_jax.models.attention.branches import Branches
from internvl_jax.models.attention.cache import Cache
from internvl_jax.models.config import FLASH_PARTS, UNUSED_PARTS, FlashConfig, InternVLConfig, TextConfig, VisionConfig
from internvl_jax.models.internvl import Encoded, InternVL, Out, Slots
from internvl_jax.models.logprobs import over_logits, token_logprobs, token_statistics
from internvl_jax.models.stack import Runtime
from internvl_jax.models.vision.intern_vit import InternViT

__all__ = [
    "FLASH_PARTS",
    "UNUSED_PARTS",
    "Branches",
    "Cache",
    "Encoded",
    "FlashConfig",
    "InternVL",
    "InternVLConfig",
    "InternViT",
    "Out",
    "Runtime",
    "Slots",
    "TextConfig",
    "VisionConfig",
    "over_logits",
    "token_logprobs",
    "token_statistics",
]
