"""Qwen3: a norm per head for queries and keys, no biases; SwiGLU, or experts of that kind (InternVL3.5)."""

from functools import partial

from internvl_jax.models.bricks.moe import Moe, SwiGluExperts, router_logits
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
    swiglu,
)
from internvl_jax.models.language.layer import Attention, SwiGlu, head_norm, no_sinks


def _constants(config: TextConfig) -> Values:
    return {"attention_bias": False, "hidden_act": "silu"}


def _checked(config: TextConfig) -> Values:
    return {"use_sliding_window": False}


def _routing(config: TextConfig) -> Values:
    return _constants(config) | {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}


def _expert_defaults(config: TextConfig) -> Values:
    # A dense layer's width, which the MoE configs name although no layer is dense.
    return {"max_position_embeddings": 40960, "intermediate_size": config.mlp * config.moe.per_token}


_ATTENTION = (
    *around_attention(),
    Released(f"{LAYER}.self_attn.q_norm.weight", f"{OURS}.attn.q_norm.scale"),
    Released(f"{LAYER}.self_attn.k_norm.weight", f"{OURS}.attn.k_norm.scale"),
)

RECORD = Family(
    name="qwen3",
    attention=partial(Attention, qkv_bias=False, out_bias=False, norm=head_norm, sinks=no_sinks),
    dense=Kind(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        feed_forward=SwiGlu,
        tensors=(*_ATTENTION, *swiglu()),
        keys=keys(head_width=Key("head_dim"), mlp=Key("intermediate_size")),
        constants=_constants,
        checked=_checked,
        defaults=lambda config: {"max_position_embeddings": 40960},
    ),
    experts=Kind(
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        feed_forward=partial(Moe, experts=SwiGluExperts, router_bias=False, balanced=router_logits),
        tensors=(
            *_ATTENTION,
            Released(f"{LAYER}.mlp.gate.weight", f"{OURS}.mlp.router.weight"),
            *swiglu("mlp.experts.{e}", "mlp.experts"),
        ),
        keys=keys(
            **{
                "head_width": Key("head_dim"),
                "mlp": Key("moe_intermediate_size"),
                "moe.experts": Key("num_experts", also=("num_local_experts",)),
                "moe.per_token": Key("num_experts_per_tok"),
            }
        ),
        constants=_routing,
        checked=_checked,
        defaults=_expert_defaults,
    ),
    template="internvl2_5",
)
