"""GPT-OSS: biases, a sink per head, clamped gated experts, and a window in every second layer (InternVL3.5 20B-A4B)."""

from functools import partial

from internvl_jax.models.bricks.moe import ClampedExperts, Moe, chosen_weights
from internvl_jax.models.config import TextConfig
from internvl_jax.models.language.families.record import (
    LAYER,
    OURS,
    Family,
    Key,
    Kind,
    Released,
    Values,
    around_attention,
    keys,
    qkv_biases,
)
from internvl_jax.models.language.layer import Attention, head_sinks, no_norm

_EXPERTS, _OUR_EXPERTS = f"{LAYER}.mlp.experts", f"{OURS}.mlp.experts"


def _windowed(config: TextConfig) -> tuple[bool, ...] | None:
    """Every second layer, from the first on; the others see all."""
    return None if config.window is None else tuple(i % 2 == 0 for i in range(config.layers))


def _constants(config: TextConfig) -> Values:
    return {
        "attention_bias": True,
        "experts_per_token": config.moe.per_token,
        "hidden_act": "silu",
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(config.layers)],
        "swiglu_limit": 7.0,
    }


def _checked(config: TextConfig) -> Values:
    return {"swiglu_alpha": 1.702, "use_sliding_window": False}


RECORD = Family(
    name="gpt_oss",
    attention=partial(Attention, qkv_bias=True, out_bias=True, norm=no_norm, sinks=head_sinks),
    windowed=_windowed,
    dense=None,
    experts=Kind(
        model_type="gpt_oss",
        architecture="GptOssForCausalLM",
        feed_forward=partial(Moe, experts=ClampedExperts, router_bias=True, balanced=chosen_weights),
        tensors=(
            *around_attention(),
            *qkv_biases(),
            Released(f"{LAYER}.self_attn.o_proj.bias", f"{OURS}.attn.o.bias"),
            Released(f"{LAYER}.self_attn.sinks", f"{OURS}.attn.sinks"),
            Released(f"{LAYER}.mlp.router.weight", f"{OURS}.mlp.router.weight"),
            Released(f"{LAYER}.mlp.router.bias", f"{OURS}.mlp.router.bias"),
            Released(f"{_EXPERTS}.gate_up_proj_bias", f"{_OUR_EXPERTS}.gate_up.bias", "e (f g) -> e g f"),
            Released(f"{_EXPERTS}.down_proj_bias", f"{_OUR_EXPERTS}.down.bias"),
            # Experts of a layer lie in one tensor, input-major; even columns are the gate's, odd ones the linear
            # half's. In MXFP4 they are output-major.
            Released(f"{_EXPERTS}.gate_up_proj", f"{_OUR_EXPERTS}.gate_up.weight", "e d (f g) -> e g f d"),
            Released(f"{_EXPERTS}.down_proj", f"{_OUR_EXPERTS}.down.weight", "e f d -> e d f"),
            Released(f"{_EXPERTS}.gate_up_proj", f"{_OUR_EXPERTS}.gate_up.weight", "e (f g) d -> e g f d", "mxfp4"),
            Released(f"{_EXPERTS}.down_proj", f"{_OUR_EXPERTS}.down.weight", "e d f -> e d f", "mxfp4"),
        ),
        keys=keys(
            **{
                "head_width": Key("head_dim"),
                "mlp": Key("intermediate_size"),
                "window": Key("sliding_window"),
                "moe.experts": Key("num_local_experts", also=("num_experts",)),
                "moe.per_token": Key("num_experts_per_tok"),
            }
        ),
        constants=_constants,
        checked=_checked,
        defaults=lambda config: {"max_position_embeddings": 131072},
        ropes=("yarn",),
    ),
    template="internvl3_5_gpt_oss",
)
