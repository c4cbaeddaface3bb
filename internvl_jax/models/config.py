"""The architecture of a model, as frozen dataclasses: every field is required and every field is read.

Published sizes are instances in `configs/models`; `checkpoint_convert.hf_config` translates a released `config.json`.
"""

import dataclasses
from typing import Any, Literal, Self

from internvl_jax.errors import InputError

# Paths of the parameters that a Flash model has besides those of its base, and of those among them that the released
# checkpoints hold but the released forward pass never uses.
FLASH_PARTS = r"^(router|compressed)\."
UNUSED_PARTS = r"^router\.pooling\.(attn|norm)[34]\."


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """InternViT (300M: LayerNorm and qkv bias; 6B: RMSNorm and full-width q/k norm without qkv bias)."""

    image_size: int  # pixels, one side of a tile
    patch_size: int  # pixels, one side of a patch
    width: int
    layers: int
    heads: int
    mlp: int
    norm: Literal["layer_norm", "rms_norm"]
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    drop_path: float  # rate of the last layer; rises linearly from 0 at the first
    layer_scale_init: float
    init_std: float

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class MoeConfig:
    """Experts in place of every feed-forward layer."""

    experts: int  # how many a layer has
    per_token: int  # how many of them a token goes through


@dataclasses.dataclass(frozen=True)
class YarnConfig:
    """Rotary positions stretched beyond the context of the first training (arXiv 2309.00071)."""

    factor: float
    beta_fast: float
    beta_slow: float
    positions: int  # length of the context in the first training


@dataclasses.dataclass(frozen=True)
class NtkConfig:
    """Rotary positions whose base grows with texts longer than the context of the training ("dynamic NTK")."""

    factor: float
    positions: int  # of the training's context


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A decoder-only language model."""

    family: str  # the name of a record in `models.language.families`
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp: int  # inner width of a feed-forward layer; of one expert, where a layer has experts
    moe: MoeConfig | None
    window: int | None  # tokens that some layers, which the family names, see; None: all layers see all
    rope_theta: float
    yarn: YarnConfig | None
    ntk: NtkConfig | None
    norm_eps: float
    tie_embeddings: bool
    init_std: float


@dataclasses.dataclass(frozen=True)
class FlashConfig:
    """The Visual Resolution Router and the branch of compressed tiles, whose pixel shuffle joins twice as many patches
    along each side.

    The thresholds are those of a request that names none; `inference.compression` says what they do.
    """

    relative_threshold: float
    absolute_threshold: float
    heads: int  # of the router's attention pooling
    dropout: float  # in router and compressed branch, in training


@dataclasses.dataclass(frozen=True)
class InternVLConfig:
    """Vision tower, pixel shuffle, projector and language model."""

    vision: VisionConfig
    text: TextConfig
    downsample_ratio: float  # 0.5: four patches become one token
    image_token_id: int  # the id of <IMG_CONTEXT>, whose embeddings are replaced by image features
    flash: FlashConfig | None

    def __post_init__(self) -> None:
        vision, text = self.vision, self.text
        for part, whole in ((vision.patch_size, vision.image_size), (vision.heads, vision.width)):
            if whole % part:
                raise InputError(f"vision config: {part} does not divide {whole}; give sizes that divide evenly")
        if text.heads % text.kv_heads:
            raise InputError(
                f"text config: {text.kv_heads} key/value heads do not divide {text.heads} heads; make them"
            )
        if text.yarn is not None and text.ntk is not None:
            raise InputError("text config: yarn and ntk are both given; rotary positions are stretched in one way")
        if text.moe is not None and not 0 < text.moe.per_token <= text.moe.experts:
            raise InputError(f"text config: {text.moe.per_token} of {text.moe.experts} experts a token; give fewer")
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
        if self.flash is not None and not 0 <= self.flash.relative_threshold <= 1:
            raise InputError(f"flash config: relative_threshold {self.flash.relative_threshold} is not from 0 to 1")

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
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The inverse of `to_dict`; no object, an unknown or a missing field raise InputError.

        A field that came later may be missing: a config that was stored before means what it then meant.
        """
        if not isinstance(values, dict):
            return _build(cls, values, "model")
        values = dict(values)
        text = values.get("text")
        if isinstance(text, dict):
            values["text"] = text = {**_BEFORE, **text}
        for name, part in (("moe", MoeConfig), ("yarn", YarnConfig), ("ntk", NtkConfig)):
            if isinstance(text, dict) and text.get(name) is not None:
                values["text"] = text = {**text, name: _build(part, text[name], f"model.text.{name}")}
        for name, half in (("vision", VisionConfig), ("text", TextConfig)):
            values[name] = _build(half, values.get(name), f"model.{name}")
        if values.get("flash") is not None:
            values["flash"] = _build(FlashConfig, values["flash"], "model.flash")
        return _build(cls, values, "model")


# Fields of the language model that configs of format 1 did not have at first, and what their absence meant.
_BEFORE = {"ntk": None}


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise InputError(f"{where} of config.json is {values!r}, not an object; write the fields of {cls.__name__}")
    names = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(values.keys() - names):
        raise InputError(f"{where} of config.json has unknown fields {unknown}; remove them")
    if missing := sorted(names - values.keys()):
        raise InputError(f"{where} of config.json lacks the fields {missing}; add them")
    return cls(**values)
