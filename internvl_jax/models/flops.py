"""Floating-point operations of the model, for model flops utilisation."""

import math
from collections.abc import Mapping
from typing import Any

from internvl_jax.models.config import InternVLConfig, TextConfig
from internvl_jax.models.language.families import family_of
from internvl_jax.sharding import ParamSpec

# Which part a parameter belongs to or stands beside, by the first name of its path; a router has nothing behind it.
_PLACE = {"vit": 0, "projector": 1, "compressed": 1, "lm": 2}

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
    return sum(map(sum, _tile_parts(config)))


def _tile_parts(config: InternVLConfig) -> tuple[tuple[float, float], tuple[float, float]]:
    """(Products with weights, attention) of the tower and of the projector."""
    vision, P = config.vision, config.vision.grid**2 + 1
    layer = 4 * vision.width**2 + 2 * vision.width * vision.mlp
    products = 2 * P * (vision.layers * layer + 3 * vision.patch_size**2 * vision.width)
    inputs = vision.width * config.shuffle**2
    projector = 2 * config.tokens_per_tile * config.text.width * (inputs + config.text.width)
    return (products, vision.layers * 4 * P * P * vision.width), (projector, 0.0)


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


def train_flops(
    config: InternVLConfig, tiles: float, tokens: float, seen: float, trained: Mapping[str, ParamSpec] | None = None
) -> float:
    """Model flops of a training step; what remat recomputes does not count.

    Forward once. Backward from the first part (tower, projector, language model) on of which something is trained:
    attention twice, each product with weights once for its input's gradient; and once more for the weights that are
    trained. Where all is trained, backward is twice forward. The router of a Flash model and its compressed branch are
    left out, they are small.

    Args:
      tiles, tokens: how many there are, those that fill up not counted; tokens of the texts that the trained model
        reads.
      seen: `seen_keys` of all tokens together.
      trained: the parameters that are trained, by path; None: all.
    """
    products = token_flops(config, 0.0)
    parts = [(tiles * weights, tiles * attention) for weights, attention in _tile_parts(config)]
    parts.append((tokens * products, tokens * (token_flops(config, seen / max(1, tokens)) - products)))
    if trained is None:
        return 3 * sum(map(sum, parts))
    first = min((_PLACE.get(path.partition(".")[0], len(parts)) for path in trained), default=len(parts))
    flops = sum(map(sum, parts)) + sum(weights + 2 * attention for weights, attention in parts[first:])
    uses = {"vit": tiles * (config.vision.grid**2 + 1), "projector": tiles * config.tokens_per_tile, "lm": tokens}
    for path, spec in trained.items():
        top = path.partition(".")[0]
        if ".weight" in path and top in uses and (config.text.tie_embeddings or path != "lm.embed.weight"):
            met = config.text.moe.per_token / config.text.moe.experts if "expert" in spec.axes else 1
            # An adapter's weights come on top of the products that are counted: forward, and both of backward.
            flops += (6 if path.endswith((".weight.a", ".weight.b")) else 2) * uses[top] * met * math.prod(spec.shape)
    return flops
