"""Floating-point operations of the model, for model flops utilisation."""

import functools
import math
from typing import Any

from internvl_jax.models.config import InternVLConfig, TextConfig
from internvl_jax.models.internvl import PARTS
from internvl_jax.models.language.families import family_of
from internvl_jax.models.stack import Runtime
from internvl_jax.sharding import structure

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


def train_flops(config: InternVLConfig, tiles: float, tokens: float, seen: float) -> float:
    """Model flops of a training step (backward is twice forward; what remat recomputes does not count).

    Beside a frozen base, backward is that of attention and, from the first part on that is trained, one product for
    each of the base's; and twice forward for what is trained.

    Args:
      tiles, tokens: how many there are, those that fill up not counted.
      seen: `seen_keys` of all tokens together.
    """
    products = token_flops(config, 0.0)
    text = products, token_flops(config, seen / max(1, tokens)) - products
    if config.lora is None:
        return 3 * (tiles * tile_flops(config) + tokens * sum(text))
    parts = [*((tiles * weights, tiles * attention) for weights, attention in _tile_parts(config))]
    parts.append((tokens * text[0], tokens * text[1]))
    uses = (tiles * (config.vision.grid**2 + 1), tiles * config.tokens_per_tile, tokens)
    adapters, whole = (_sizes(config, kind) for kind in ("adapters", "whole"))
    first = min((part for part in range(3) if adapters[part] or whole[part]), default=3)
    base = sum(sum(part) + (part[0] + 2 * part[1]) * (number >= first) for number, part in enumerate(parts))
    return base + sum(2 * use * (3 * a + w) for use, a, w in zip(uses, adapters, whole, strict=True))


@functools.cache
def _sizes(config: InternVLConfig, kind: str) -> tuple[float, float, float]:
    """How many numbers of adapters, or of weights that are trained whole, a patch, an image token and a token meet."""
    found = {"vit": 0.0, "projector": 0.0, "lm": 0.0}
    tied = config.text.tie_embeddings
    for path, spec in structure(PARTS["all"], config, Runtime())[1].items():
        own = path.endswith((".weight.a", ".weight.b")) if kind == "adapters" else path in config.lora.whole
        top = path.partition(".")[0]
        if own and ".weight" in path and top in found and (tied or path != "lm.embed.weight"):
            share = config.text.moe.per_token / config.text.moe.experts if "expert" in spec.axes else 1
            found[top] += share * math.prod(spec.shape)
    return found["vit"], found["projector"], found["lm"]
