"""Floating-point operations of the model, for model flops utilisation."""

from typing import Any

from internvl_jax.models.config import InternVLConfig, TextConfig
from internvl_jax.models.language.families import family_of

# Dense bfloat16 peak of one device, flops a second, by jax's device_kind (vendors' data sheets).
PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def tile_flops(config: InternVLConfig) -> float:
    """Forward flops of one tile through tower and projector: two for every weight and patch, and those of attention."""
    vision, P = config.vision, config.vision.grid**2 + 1
    layer = 4 * vision.width**2 + 2 * vision.width * vision.mlp
    tower = vision.layers * (2 * P * layer + 4 * P * P * vision.width) + 2 * P * 3 * vision.patch_size**2 * vision.width
    inputs = vision.width * config.shuffle**2
    return tower + 2 * config.tokens_per_tile * config.text.width * (inputs + config.text.width)


def token_flops(config: InternVLConfig, context: float) -> float:
    """Forward flops of one token through the language model and its head.

    Args:
      context: how many tokens it attends to, on average.
    """
    text = config.text
    attention = 2 * text.width * text.head_width * (text.heads + text.kv_heads)
    experts = 1 if text.moe is None else text.moe.per_token
    router = 0 if text.moe is None else text.width * text.moe.experts
    layer = 2 * (attention + router + 3 * experts * text.width * text.mlp) + 4 * context * text.heads * text.head_width
    return text.layers * layer + 2 * text.vocab * text.width


def seen_keys(config: TextConfig, position: Any) -> Any:
    """How many keys a token sees, on average over the layers: those before it in its sample, as many of them as a
    layer's window has, and half of its own. Over a sample of n tokens that is n^2 / 2 without windows.

    Args:
      position: of the token in its sample, from 0; an array of numpy or JAX of floats.
    """
    here = position + 0.5
    windowed = family_of(config).windowed(config)
    if windowed is None:
        return here
    share = sum(windowed) / config.layers
    return (1 - share) * here + share * here.clip(None, config.window)


def train_flops(config: InternVLConfig, tiles: float, tokens: float, seen: float) -> float:
    """Model flops of a training step (backward is twice forward; what remat recomputes does not count).

    Args:
      tiles, tokens: how many there are, those that fill up not counted.
      seen: `seen_keys` of all tokens together.
    """
    return 3 * (tiles * tile_flops(config) + tokens * token_flops(config, seen / max(1, tokens)))
