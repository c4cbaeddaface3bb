"""The architecture of a model, as frozen dataclasses: every field is required and every field is read.

Published sizes are instances in `configs/models`; `checkpoint_convert.hf_config` translates a released `config.json`.
"""

import dataclasses
from typing import Annotated, Any, Literal, Self

from msgspec import Meta

from internvl_jax.errors import InputError
from internvl_jax.models.transforms.lora_config import LoraConfig
from internvl_jax.models.transforms.quantised_names import QUANTISED, Quantised
from internvl_jax.validation import Fraction, Positive, build, check_fields

# Paths of the parameters that a Flash model has besides those of its base, and of those among them that the released
# checkpoints hold but the released forward pass never uses.
FLASH_PARTS = r"^(router|compressed)\."
UNUSED_PARTS = r"^router\.pooling\.(attn|norm)[34]\."

# Bounds that no model of these families comes near, and beyond which memory would end before an error does.
Layers = Annotated[int, Meta(ge=1, le=512)]
Heads = Annotated[int, Meta(ge=1, le=65536)]
Width = Annotated[int, Meta(ge=1, le=2**22)]
Experts = Annotated[int, Meta(ge=1, le=1024)]
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Pixels = Annotated[int, Meta(ge=1, le=65536)]


class _Checked:
    """A config whose fields are held against their bounds when it is made."""

    def __post_init__(self) -> None:
        check_fields(self, type(self).__name__)


@dataclasses.dataclass(frozen=True)
class VisionConfig(_Checked):
    """InternViT (300M: LayerNorm and qkv bias; 6B: RMSNorm and full-width q/k norm without qkv bias)."""

    image_size: Pixels  # pixels, one side of a tile
    patch_size: Pixels  # pixels, one side of a patch
    width: Width
    layers: Layers
    heads: Heads
    mlp: Width
    norm: Literal["layer_norm", "rms_norm"]
    norm_eps: Fraction
    qkv_bias: bool
    qk_norm: bool
    drop_path: Annotated[float, Meta(ge=0, lt=1)]  # rate of the last layer; rises linearly from 0 at the first
    layer_scale_init: Annotated[float, Meta(ge=-(10**9), le=10**9)]
    init_std: Fraction

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class MoeConfig(_Checked):
    """Experts in place of every feed-forward layer."""

    experts: Experts  # how many a layer has
    per_token: Experts  # how many of them a token goes through


@dataclasses.dataclass(frozen=True)
class YarnConfig(_Checked):
    """Rotary positions stretched beyond the context of the first training (arXiv 2309.00071)."""

    factor: Positive
    beta_fast: Positive
    beta_slow: Positive
    positions: Tokens  # length of the context in the first training


@dataclasses.dataclass(frozen=True)
class NtkConfig(_Checked):
    """Rotary positions whose base grows with texts longer than the context of the training ("dynamic NTK")."""

    factor: Positive
    positions: Tokens  # of the training's context


@dataclasses.dataclass(frozen=True)
class TextConfig(_Checked):
    """A decoder-only language model."""

    family: str  # the name of a record in `models.language.families`
    vocab: Tokens
    width: Width
    layers: Layers
    heads: Heads
    kv_heads: Heads
    head_width: Width
    mlp: Width  # inner width of a feed-forward layer; of one expert, where a layer has experts
    moe: MoeConfig | None
    window: Tokens | None  # tokens that some layers, which the family names, see; None: all layers see all
    rope_theta: Annotated[float, Meta(gt=0, le=10**15)]
    yarn: YarnConfig | None
    ntk: NtkConfig | None
    norm_eps: Fraction
    tie_embeddings: bool
    init_std: Fraction


@dataclasses.dataclass(frozen=True)
class FlashConfig(_Checked):
    """The Visual Resolution Router and the branch of compressed tiles, whose pixel shuffle joins twice as many patches
    along each side.

    The thresholds are those of a request that names none; `inference.compression` says what they do.
    """

    relative_threshold: Fraction
    absolute_threshold: Annotated[float, Meta(ge=-(10**9), le=10**9)]
    heads: Heads  # of the router's attention pooling
    dropout: Annotated[float, Meta(ge=0, lt=1)]  # in router and compressed branch, in training


@dataclasses.dataclass(frozen=True)
class InternVLConfig(_Checked):
    """Vision tower, pixel shuffle, projector and language model."""

    vision: VisionConfig
    text: TextConfig
    downsample_ratio: Annotated[float, Meta(ge=2**-8, le=1)]  # 0.5: four patches become one token
    image_token_id: Annotated[
        int, Meta(ge=-1, lt=2**31)
    ]  # the id of <IMG_CONTEXT>, whose embeddings are replaced by image features
    flash: FlashConfig | None
    lora: LoraConfig | None = None  # the adapter that its weights have; most models have none
    quantised: Quantised | None = None  # how quantised weights are stored and multiplied; most models have none

    def __post_init__(self) -> None:
        super().__post_init__()
        vision, text = self.vision, self.text
        for part, whole in ((vision.patch_size, vision.image_size), (vision.heads, vision.width)):
            if whole % part:
                raise InputError(f"vision config: {part} does not divide {whole}; give sizes that divide evenly")
        if text.heads % text.kv_heads:
            raise InputError(
                f"text config: {text.kv_heads} key/value heads do not divide {text.heads} heads; make them"
            )
        if text.head_width % 2:
            raise InputError(f"text config: head_width {text.head_width} is odd; rotary positions turn pairs")
        if text.yarn is not None and (text.yarn.beta_fast <= text.yarn.beta_slow or text.rope_theta <= 1):
            raise InputError("text config: yarn needs beta_fast above beta_slow, and rope_theta above 1; correct them")
        if text.yarn is not None and text.ntk is not None:
            raise InputError("text config: yarn and ntk are both given; rotary positions are stretched in one way")
        if text.moe is not None and not 0 < text.moe.per_token <= text.moe.experts:
            raise InputError(f"text config: {text.moe.per_token} of {text.moe.experts} experts a token; give fewer")
        if abs(self.downsample_ratio * self.shuffle - 1) > 1e-6:
            raise InputError(f"downsample_ratio is {self.downsample_ratio}; give 1 divided by a whole number")
        if vision.grid % self.shuffle:
            raise InputError(
                f"downsample_ratio {self.downsample_ratio} needs a patch grid divisible by {self.shuffle}, "
                f"but image_size / patch_size is {vision.grid}; change one of them"
            )
        if self.flash is not None and (vision.grid % self.compressed_shuffle or vision.width % self.flash.heads):
            raise InputError(
                f"flash config: a patch grid of {vision.grid} has to be divisible by {self.compressed_shuffle} and the "
                f"tower's width {vision.width} by {self.flash.heads} heads; change one of them"
            )

    @property
    def shuffle(self) -> int:
        """Patches along one side that pixel shuffle joins into a token."""
        return round(1 / self.downsample_ratio)

    @property
    def tokens_per_tile(self) -> int:
        return (self.vision.grid // self.shuffle) ** 2

    @property
    def compressed_shuffle(self) -> int:
        """As `shuffle`, for the compressed tiles of the Flash models."""
        return 2 * self.shuffle

    @property
    def tokens_per_compressed_tile(self) -> int:
        return (self.vision.grid // self.compressed_shuffle) ** 2

    def to_dict(self) -> dict[str, Any]:
        """As config.json has it."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value is not None or name not in _ABSENT}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The inverse of `to_dict`; no object, an unknown or a missing field raise InputError.

        A field that came later may be missing: a config that was stored before means what it then meant.
        """
        if not isinstance(values, dict):
            return build(cls, values, "model of config.json")
        values = dict(values)
        text = values.get("text")
        if isinstance(text, dict):
            values["text"] = text = {**_BEFORE, **text}
        for name, part in (("moe", MoeConfig), ("yarn", YarnConfig), ("ntk", NtkConfig)):
            if isinstance(text, dict) and text.get(name) is not None:
                values["text"] = text = {**text, name: build(part, text[name], f"model.text.{name} of config.json")}
        for name, half in (("vision", VisionConfig), ("text", TextConfig)):
            values[name] = build(half, values.get(name), f"model.{name} of config.json")
        if values.get("flash") is not None:
            values["flash"] = build(FlashConfig, values["flash"], "model.flash of config.json")
        lora = values.get("lora")
        values["lora"] = None if lora is None else LoraConfig.from_dict(lora, "model.lora of config.json")
        values.setdefault("quantised", None)
        return build(cls, values, "model of config.json")


# Fields of the language model that configs of format 1 did not have at first, and what their absence meant.
_BEFORE = {"ntk": None}
# What stands in config.json only where a model has it.
_ABSENT = ("lora", "quantised")


def with_quantised(config: InternVLConfig, how: str | None) -> InternVLConfig:
    """The config of a model whose products with quantised weights are made so; None: as it is.

    Raises:
      InputError: nobody knows how.
    """
    if not how:
        return config
    if how not in QUANTISED:
        raise InputError(f"quantise is {how!r}; use one of {', '.join(QUANTISED)}")
    if how == "mxfp4" and config.text.moe is None:
        raise InputError("quantise is 'mxfp4', which is for experts, and this model has none; use int8")
    return dataclasses.replace(config, quantised=how)
