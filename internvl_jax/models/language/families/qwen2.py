"""Qwen2.5: biases of queries, keys and values, no norms of heads (InternVL3, VisualPRM v1.1)."""

from functools import partial

from internvl_jax.models.config import TextConfig
from internvl_jax.models.language.families.record import (
    Family,
    Key,
    Kind,
    Values,
    around_attention,
    keys,
    qkv_biases,
    swiglu,
)
from internvl_jax.models.language.layer import Attention, SwiGlu, no_norm, no_sinks


def _checked(config: TextConfig) -> Values:
    return {
        "head_dim": config.width // config.heads,
        "layer_types": ["full_attention"] * config.layers,
        "use_sliding_window": False,
    }


RECORD = Family(
    name="qwen2",
    attention=partial(Attention, qkv_bias=True, out_bias=False, norm=no_norm, sinks=no_sinks),
    dense=Kind(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        feed_forward=SwiGlu,
        tensors=(*around_attention(), *qkv_biases(), *swiglu()),
        keys=keys(mlp=Key("intermediate_size")),
        constants=lambda config: {"hidden_act": "silu"},
        checked=_checked,
        defaults=lambda config: {"max_position_embeddings": 32768},
        ropes=("default", "dynamic"),
        rope_names=("rope_type", "type"),
    ),
    experts=None,
    template="internvl2_5",
)
