"""InternLM2.5: no biases, no norms of heads; names and layout of its own (InternVL2.5-8B, VisualPRM v1.0)."""

from functools import partial

from internvl_jax.models.config import TextConfig
from internvl_jax.models.language.families.record import LAYER, OURS, Family, Key, Kind, Released, Values, keys
from internvl_jax.models.language.layer import Attention, SwiGlu, no_norm, no_sinks

_PARTS = tuple(f"{OURS}.attn.{part}.weight" for part in "qkv")
_MODEL = "language_model.model"


def _defaults(config: TextConfig) -> Values:
    # Its classes are code beside the checkpoint.
    return {
        "auto_map": {
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
            "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
        },
        "max_position_embeddings": 32768,
    }


RECORD = Family(
    name="internlm2",
    attention=partial(Attention, qkv_bias=False, out_bias=False, norm=no_norm, sinks=no_sinks),
    dense=Kind(
        model_type="internlm2",
        architecture="InternLM2ForCausalLM",
        feed_forward=SwiGlu,
        tensors=(
            Released(f"{_MODEL}.tok_embeddings.weight", "lm.embed.weight"),
            Released(f"{LAYER}.attention_norm.weight", f"{OURS}.attn_norm.scale"),
            Released(f"{LAYER}.ffn_norm.weight", f"{OURS}.mlp_norm.scale"),
            # For each key/value head its queries, its key and its value.
            *(Released(f"{LAYER}.attention.wqkv.weight", part, shared=_PARTS) for part in _PARTS),
            Released(f"{LAYER}.attention.wo.weight", f"{OURS}.attn.o.weight", "d (n h) -> d n h"),
            Released(f"{LAYER}.feed_forward.w1.weight", f"{OURS}.mlp.gate.weight"),
            Released(f"{LAYER}.feed_forward.w3.weight", f"{OURS}.mlp.up.weight"),
            Released(f"{LAYER}.feed_forward.w2.weight", f"{OURS}.mlp.down.weight"),
            Released(f"{_MODEL}.norm.weight", "lm.norm.scale"),
            Released("language_model.output.weight", "lm.head.weight"),
        ),
        keys=keys(mlp=Key("intermediate_size")),
        constants=lambda config: {"bias": False, "hidden_act": "silu"},
        defaults=_defaults,
        ropes=("default", "dynamic"),
        rope_names=("type",),
        formats=("github",),
    ),
    experts=None,
    template="internvl2_5",
)
