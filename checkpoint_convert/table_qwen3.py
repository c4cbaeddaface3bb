"""Rows of the dense Qwen3 language models; both released formats use these names."""

from checkpoint_convert.rows import Row


def language_model() -> list[Row]:
    layer, ours = "language_model.model.layers.{i}", "lm.layers"
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
        Row(f"{layer}.mlp.gate_proj.weight", f"{ours}.mlp.gate.weight"),
        Row(f"{layer}.mlp.up_proj.weight", f"{ours}.mlp.up.weight"),
        Row(f"{layer}.mlp.down_proj.weight", f"{ours}.mlp.down.weight"),
        Row("language_model.model.norm.weight", "lm.norm.scale"),
        Row("language_model.lm_head.weight", "lm.head.weight"),
    ]
