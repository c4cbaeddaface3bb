"""What a family of language models is, in one record: its bricks, its released tensors, and config.json both ways.

1. `Family` says what a layer is made of and which layers see a window.
2. `ModelKind` is one released architecture of it (dense, or with experts): how its config.json and its tensors are
   named. These are data: `checkpoint_convert` reads and writes by them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from flax import nnx

from internvl_jax.errors import InputError
from internvl_jax.models.config import TextConfig

Values = dict[str, Any]
Brick = Callable[[TextConfig, nnx.Rngs], nnx.Module]


@dataclasses.dataclass(frozen=True)
class Released:
    """Where a released tensor goes; `checkpoint_convert.rows` reads and writes by it.

    Attributes:
      source: template of a tensor name; `{i}` counts layers, `{e}` experts.
      target: path of the parameter.
      pattern: einops pattern from the tensor to the parameter without its counted axes.
      packed: how the numbers are packed, where they are: such a tensor is read in place of the plain one of the same
        target, and never written.
      shared: paths of all parameters that lie in this one tensor, in turns: for each head of the last parameter first
        the share of the first one's heads, then that of the second, ... Empty where the tensor is one parameter's.
    """

    source: str
    target: str
    pattern: str = "... -> ..."
    packed: Literal["mxfp4"] | None = None
    shared: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a released config.json.

    Attributes:
      also: other spellings that are read.
    """

    name: str
    also: tuple[str, ...] = ()


def _nothing(config: TextConfig) -> Values:
    return {}


@dataclasses.dataclass(frozen=True)
class ModelKind:
    """One released architecture.

    Attributes:
      model_type, architecture: its names in config.json.
      feed_forward: the brick in the layer's second half.
      tensors: all that a layer and what surrounds the layers may have; names of both released formats.
      keys: field of `TextConfig` ('moe.experts', 'moe.per_token' within) -> where config.json has it. Without
        'head_width', heads share the model's width.
      constants: keys whose value follows from the rest. They are written, and another value is refused.
      checked: the same for keys that are not written.
      defaults: values on which nothing here depends, written where the checkpoint came without config.json.
      ropes: rotary positions that it may have, of "default", "yarn", "dynamic"; the first where config.json names none.
      rope_names: what the key of these is called in `rope_scaling`; the first is read first.
      formats: released formats that have this architecture.
    """

    model_type: str
    architecture: str
    feed_forward: Brick
    tensors: tuple[Released, ...]
    keys: Mapping[str, Key]
    constants: Callable[[TextConfig], Values]
    checked: Callable[[TextConfig], Values] = _nothing
    defaults: Callable[[TextConfig], Values] = _nothing
    ropes: tuple[str, ...] = ("default",)
    rope_names: tuple[str, ...] = ("rope_type",)
    formats: tuple[str, ...] = ("github", "hf")


def all_see_all(config: TextConfig) -> None:
    """No layer has a window; InputError where the config has one."""
    if config.window is not None:
        raise InputError(f"text config: models of the family {config.family!r} have no window; set it to None")


@dataclasses.dataclass(frozen=True)
class Family:
    """Attributes:
    name: `TextConfig.family`.
    attention: the brick in the layer's first half.
    windowed: for every layer whether it sees the window alone; None where none does.
    dense, experts: what is released of each; None where nothing is.
    template: name of the chat template, for checkpoints that name none.
    """

    name: str
    attention: Brick
    dense: ModelKind | None
    experts: ModelKind | None
    template: str
    windowed: Callable[[TextConfig], Sequence[bool] | None] = all_see_all

    @property
    def kinds(self) -> tuple[ModelKind, ...]:
        return tuple(kind for kind in (self.dense, self.experts) if kind is not None)

    def kind(self, config: TextConfig) -> ModelKind:
        """The architecture of a model.

        Raises:
          InputError: the family has none with experts, or none without.
        """
        found = self.dense if config.moe is None else self.experts
        if found is None:
            raise InputError(
                f"text config: the family {self.name!r} has no models {'with' if config.moe else 'without'} experts; "
                "change moe or the family"
            )
        return found


# What most families share.

LAYER, OURS = "language_model.model.layers.{i}", "lm.layers"


def keys(**more: Key) -> dict[str, Key]:
    """The keys that all families have, and more."""
    return {
        "vocab": Key("vocab_size"),
        "width": Key("hidden_size"),
        "layers": Key("num_hidden_layers"),
        "heads": Key("num_attention_heads"),
        "kv_heads": Key("num_key_value_heads"),
        "norm_eps": Key("rms_norm_eps"),
        "init_std": Key("initializer_range"),
        **more,
    }


def around_attention() -> tuple[Released, ...]:
    """Tables, norms and the attention's products, as Qwen and GPT-OSS name them."""
    attention = f"{LAYER}.self_attn"
    return (
        Released("language_model.model.embed_tokens.weight", "lm.embed.weight"),
        Released(f"{LAYER}.input_layernorm.weight", f"{OURS}.attn_norm.scale"),
        Released(f"{LAYER}.post_attention_layernorm.weight", f"{OURS}.mlp_norm.scale"),
        Released(f"{attention}.q_proj.weight", f"{OURS}.attn.q.weight", "(n h) d -> n h d"),
        Released(f"{attention}.k_proj.weight", f"{OURS}.attn.k.weight", "(m h) d -> m h d"),
        Released(f"{attention}.v_proj.weight", f"{OURS}.attn.v.weight", "(m h) d -> m h d"),
        Released(f"{attention}.o_proj.weight", f"{OURS}.attn.o.weight", "d (n h) -> d n h"),
        Released("language_model.model.norm.weight", "lm.norm.scale"),
        Released("language_model.lm_head.weight", "lm.head.weight"),
    )


def qkv_biases() -> tuple[Released, ...]:
    attention = f"{LAYER}.self_attn"
    return (
        Released(f"{attention}.q_proj.bias", f"{OURS}.attn.q.bias", "(n h) -> n h"),
        Released(f"{attention}.k_proj.bias", f"{OURS}.attn.k.bias", "(m h) -> m h"),
        Released(f"{attention}.v_proj.bias", f"{OURS}.attn.v.bias", "(m h) -> m h"),
    )


def swiglu(theirs: str = "mlp", ours: str = "mlp") -> tuple[Released, ...]:
    parts = ("gate", "up", "down")
    return tuple(Released(f"{LAYER}.{theirs}.{part}_proj.weight", f"{OURS}.{ours}.{part}.weight") for part in parts)
