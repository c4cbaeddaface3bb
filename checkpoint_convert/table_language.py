"""Rows of the language models, Qwen3 dense and MoE and GPT-OSS; both released formats use these names."""

from checkpoint_convert.mxfp4 import Mxfp4Row
from checkpoint_convert.rows import Row

_LAYER, _OURS = "language_model.model.layers.{i}", "lm.layers"
_EXPERTS = f"{_LAYER}.mlp.experts"  # GPT-OSS's


def qwen3() -> list[Row]:
    return [*_common(), *_qk_norms(), *_swiglu("mlp", "mlp")]


def qwen3_moe() -> list[Row]:
    router = Row(f"{_LAYER}.mlp.gate.weight", f"{_OURS}.mlp.router.weight")
    return [*_common(), *_qk_norms(), router, *_swiglu("mlp.experts.{e}", "mlp.experts")]


def gpt_oss() -> list[Row]:
    """Experts of a layer lie in one tensor, input-major; even columns are the gate's, odd ones the linear half's."""
    return [
        *_gpt_oss(),
        Row(f"{_EXPERTS}.gate_up_proj", f"{_OURS}.mlp.experts.gate_up.weight", "e d (f g) -> e g f d"),
        Row(f"{_EXPERTS}.down_proj", f"{_OURS}.mlp.experts.down.weight", "e f d -> e d f"),
    ]


def gpt_oss_mxfp4() -> list[Row]:
    """The experts' weights in MXFP4, output-major then."""
    return [
        *_gpt_oss(),
        Mxfp4Row(f"{_EXPERTS}.gate_up_proj", f"{_OURS}.mlp.experts.gate_up.weight", "e (f g) d -> e g f d"),
        Mxfp4Row(f"{_EXPERTS}.down_proj", f"{_OURS}.mlp.experts.down.weight", "e d f -> e d f"),
    ]


def _gpt_oss() -> list[Row]:
    """All but the experts' weights."""
    attention, ours = f"{_LAYER}.self_attn", f"{_OURS}.mlp"
    return [
        *_common(),
        Row(f"{attention}.q_proj.bias", f"{_OURS}.attn.q.bias", "(n h) -> n h"),
        Row(f"{attention}.k_proj.bias", f"{_OURS}.attn.k.bias", "(m h) -> m h"),
        Row(f"{attention}.v_proj.bias", f"{_OURS}.attn.v.bias", "(m h) -> m h"),
        Row(f"{attention}.o_proj.bias", f"{_OURS}.attn.o.bias"),
        Row(f"{attention}.sinks", f"{_OURS}.attn.sinks"),
        Row(f"{_LAYER}.mlp.router.weight", f"{ours}.router.weight"),
        Row(f"{_LAYER}.mlp.router.bias", f"{ours}.router.bias"),
        Row(f"{_EXPERTS}.gate_up_proj_bias", f"{ours}.experts.gate_up.bias", "e (f g) -> e g f"),
        Row(f"{_EXPERTS}.down_proj_bias", f"{ours}.experts.down.bias"),
    ]


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
        Row(f"{attention}.o_proj.weight", f"{ours}.attn.o.weight", "d (n h) -> d n h"),
        Row("language_model.model.norm.weight", "lm.norm.scale"),
        Row("language_model.lm_head.weight", "lm.head.weight"),
    ]


def _qk_norms() -> list[Row]:
    return [Row(f"{_LAYER}.self_attn.{part}_norm.weight", f"{_OURS}.attn.{part}_norm.scale") for part in ("q", "k")]


def _swiglu(theirs: str, ours: str) -> list[Row]:
    parts = ("gate", "up", "down")
    return [Row(f"{_LAYER}.{theirs}.{part}_proj.weight", f"{_OURS}.{ours}.{part}.weight") for part in parts]
