"""Rows of the Qwen3 language models, dense and MoE; both released formats use these names."""

from checkpoint_convert.rows import Row

_LAYER, _OURS = "language_model.model.layers.{i}", "lm.layers"


def dense() -> list[Row]:
    return [*_common(), *_swiglu(f"{_LAYER}.mlp")]


def moe() -> list[Row]:
    router = Row(f"{_LAYER}.mlp.gate.weight", f"{_OURS}.mlp.router.weight")
    return [*_common(), router, *_swiglu(f"{_LAYER}.mlp.experts.{{e}}")]


def _common() -> list[Row]:
    layer, ours = _LAYER, _OURS
    attention = f"{layer}.self_attn"
    return [
        Row("language_model.model.embed_tokens.weight", "lm.embed.weight"),
        Row(f"{layer}.input_layernorm.weight", f"{ours}.attn_norm.scale"),
        Row(f"{layer}.post_attention_layernorm.weight", f"{ours}.mlp_norm.scale"),
        Row(f"{attention}.q_proj.weight", f"{ours}.attn.q.weight", "(n h) d -> n h d"),
        Row(f"{attention}.k_proj.weight", f"{ours}.attn.k.weight", "(m h) d -> m h d"),
        Row(f"{attention}.v_proj.weight", f"{ours}.attn.v.weight", "(m h) d -> m h d"),
        Row(f"{attention}.q_norm.weight", f"{ours}.attn.q_norm.scale"),
        Row(f"{attention}.k_norm.weight", f"{ours}.attn.k_norm.scale"),
        Row(f"{attention}.o_proj.weight", f"{ours}.attn.o.weight", "d (n h) -> d n h"),
        Row("language_model.model.norm.weight", "lm.norm.scale"),
        Row("language_model.lm_head.weight", "lm.head.weight"),
    ]


def _swiglu(theirs: str) -> list[Row]:
    return [Row(f"{theirs}.{part}_proj.weight", f"{_OURS}.mlp.{part}.weight") for part in ("gate", "up", "down")]
