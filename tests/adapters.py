"""Adapters of random numbers, and what the model is that has one merged in."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from internvl_jax.models import PARTS, AdaptedWeight, LoraConfig, Runtime, merged
from internvl_jax.sharding import structure

_NAMES = ("attn.k", "attn.o", "attn.q", "attn.v", "mlp.down", "mlp.gate", "mlp.up")
PATHS = tuple(f"lm.layers.{name}" for name in _NAMES)


def drawn_adapter(config, seed, paths=PATHS, most=4):
    """An adapter whose ranks differ from layer to layer, as files have it."""
    rng, layers = np.random.default_rng(seed), config.text.layers
    weights = []
    for path in paths:
        ranks = tuple((int(rank),) for rank in [*rng.integers(0, most + 1, layers - 1), most])
        weights.append(AdaptedWeight(path, ranks, tuple((float(1 + rng.integers(8)),) for _ in range(layers))))
    lora = LoraConfig(tuple(weights))
    specs = structure(PARTS["all"], dataclasses.replace(config, lora=lora), Runtime())[1]
    params = {}
    for weight in weights:
        path, scale = f"{weight.path}.weight", lora.scales(weight)
        a, b = (rng.normal(size=specs[f"{path}.{name}"].shape).astype(np.float32) * 0.2 for name in "ab")
        some = scale != 0
        a *= some.reshape(*some.shape, *(1,) * (a.ndim - 2))
        b *= some.reshape(len(some), *(1,) * (b.ndim - 2), -1)
        params |= {f"{path}.a": a, f"{path}.b": b, f"{path}.scale": scale}
    return lora, params


def with_merged(params, config, lora, own):
    """The parameters of the model without adapter, with one merged in."""
    adapted = {f"{weight.path}.weight" for weight in lora.weights}
    base = {f"{path}.base" if path in adapted else path: value for path, value in params.items()}
    everything = base | {path: jnp.asarray(value) for path, value in own.items()}
    return merged(everything, dataclasses.replace(config, lora=lora))
