"""config.json of a released checkpoint -> the model config of this project.

Formats: 'github' is the public repository's InternVLChatModel, 'hf' is transformers' InternVLForConditionalGeneration
(as written by 4.5x and by 5.x, which renames a few keys), 'vit' is a vision tower alone (InternVisionModel). Every
value that would change the computation is either translated or checked against the one that this project computes.
What the keys of a language model are called, its family's record says.
"""

import dataclasses
import pathlib
from typing import Any, Literal

from internvl_jax.errors import InputError
from internvl_jax.models import (
    FAMILIES,
    Family,
    FlashConfig,
    InternVLConfig,
    Key,
    ModelKind,
    MoeConfig,
    NtkConfig,
    TextConfig,
    VisionConfig,
    YarnConfig,
    kind_of,
)
from internvl_jax.validation import CountOrZero, Fields, bounds_of, check_value, not_null, read_json, shown

Format = Literal["github", "hf", "vit"]

# Stands for the id of <IMG_CONTEXT> where a GitHub-format checkpoint came without tokenizer files: no token has it.
UNKNOWN_TOKEN = -1

ARCHITECTURES: dict[str, Format] = {
    "InternVLChatModel": "github",
    "InternVLForConditionalGeneration": "hf",
    "InternVisionModel": "vit",
}
_THETA = bounds_of(TextConfig, "rope_theta")
_KINDS = {kind.model_type: (family, kind) for family in FAMILIES.values() for kind in family.kinds}


def language_model(text: TextConfig) -> str:
    """The released model_type of a language model."""
    return kind_of(text).model_type


@dataclasses.dataclass(frozen=True)
class ReleasedConfig:
    """A config.json and what kind it is."""

    file: pathlib.Path
    format: Format
    values: dict[str, Any]

    @property
    def family(self) -> str:
        """The language model's model_type."""
        return self._language.get("model_type", str)

    @property
    def language_family(self) -> Family:
        """The record of the language model's family; InputError where there is none."""
        return _architecture(self._language)[0]

    @property
    def mxfp4(self) -> bool:
        """Are the experts' weights stored in MXFP4?

        Raises:
          InputError: weights that are quantised in another way, or of another family.
        """
        text = self._language
        for part in (text, self._whole):
            if part.optional("quantization_config", dict) is not None:
                quantized = part.part("quantization_config")
                quantized.get("quant_method", str)
                quantized.expect("quant_method", "mxfp4")
                kind = _architecture(text)[1]
                if all(released.packed != "mxfp4" for released in kind.tensors):
                    raise InputError(
                        f"{self.file}: weights in mxfp4 are not known of {kind.model_type}; "
                        "use a checkpoint that is not quantised"
                    )
                return True
        return False

    def vision(self) -> VisionConfig:
        return _vision(self._whole.part("vision_config") if self.format != "vit" else self._whole, self.format)

    def model(self, image_token_id: int | None) -> InternVLConfig:
        """Args:
          image_token_id: the id of <IMG_CONTEXT>, which a GitHub-format config.json doesn't hold; an HF one does and
            must agree unless this is None.

        Raises:
          InputError: a missing key, or a value that this project doesn't compute.
        """
        whole = self._whole
        if self.format == "vit":
            raise InputError(f"{self.file} describes a vision tower alone (InternVisionModel); give a whole model")
        vision = self.vision()
        if self.format == "hf":
            text = _text(self._language, whole)
            whole.expect("projector_hidden_act", "gelu")
            whole.expect("vision_feature_layer", -1)
            whole.expect("vision_feature_select_strategy", "default")
            written = whole.get("image_token_id", bounds_of(InternVLConfig, "image_token_id"))
            if written == UNKNOWN_TOKEN and image_token_id is not None:
                written = image_token_id
            if image_token_id not in (None, written):
                raise InputError(
                    f"{self.file} has image_token_id {written} but the tokenizer or reference says {image_token_id}; "
                    "use files of one checkpoint"
                )
            image_token_id = written
        else:
            text = _text(self._language, whole)
            whole.expect("select_layer", -1)
            whole.expect("ps_version", "v2")
            for key in ("use_backbone_lora", "use_llm_lora"):
                whole.optional(key, CountOrZero, 0)  # the rank of adapters, which the tensors say (`wrapped`)
            if (forced := whole.optional("force_image_size", int)) not in (None, vision.image_size):
                raise InputError(
                    f"{self.file}: force_image_size {forced} is not vision_config.image_size {vision.image_size}; "
                    "make them agree"
                )
        if image_token_id is None:
            raise InputError(
                f"{self.file} does not say the id of <IMG_CONTEXT>; put the tokenizer files of the checkpoint beside it"
            )
        ratio = whole.get("downsample_ratio", bounds_of(InternVLConfig, "downsample_ratio"))
        return InternVLConfig(vision, text, ratio, image_token_id, _flash(whole, self.format))

    @property
    def _whole(self) -> Fields:
        return Fields(self.file, "", self.values)

    @property
    def _language(self) -> Fields:
        return self._whole.part("text_config" if self.format == "hf" else "llm_config")


def read_config(directory: str | pathlib.Path) -> ReleasedConfig:
    """Reads config.json of a released checkpoint.

    Raises:
      InputError: there is none, it isn't JSON, or its architecture is unknown.
    """
    file = pathlib.Path(directory) / "config.json"
    values = read_json(file)
    architectures = values.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(f"{file}: unknown architecture {shown(name)}; supported are {', '.join(ARCHITECTURES)}")
    return ReleasedConfig(file, ARCHITECTURES[name], values)


def _vision(part: Fields, form: Format) -> VisionConfig:
    keys = {"qkv_bias": "qkv_bias", "qk_norm": "qk_normalization", "layer_scale_init": "initializer_factor"}
    if form == "hf":
        keys = {"qkv_bias": "attention_bias", "qk_norm": "use_qk_norm", "layer_scale_init": "layer_scale_init_value"}
        part.expect("use_mean_pooling", True)  # False adds a norm after the last layer
        part.expect("use_absolute_position_embeddings", True)
        part.expect("use_mask_token", False)
    part.expect("hidden_act", "gelu")
    part.expect("num_channels", 3)
    read = lambda field, key: part.get(key, bounds_of(VisionConfig, field))
    return VisionConfig(
        image_size=_side(part, "image_size"),
        patch_size=_side(part, "patch_size"),
        width=read("width", "hidden_size"),
        layers=read("layers", "num_hidden_layers"),
        heads=read("heads", "num_attention_heads"),
        mlp=read("mlp", "intermediate_size"),
        norm=read("norm", "norm_type"),
        norm_eps=read("norm_eps", "layer_norm_eps"),
        qkv_bias=read("qkv_bias", keys["qkv_bias"]),
        qk_norm=read("qk_norm", keys["qk_norm"]),
        # transformers' vision tower has no drop path.
        drop_path=0.0 if form == "hf" else read("drop_path", "drop_path_rate"),
        layer_scale_init=read("layer_scale_init", keys["layer_scale_init"]),
        init_std=read("init_std", "initializer_range"),
    )


def _flash(whole: Fields, form: Format) -> FlashConfig | None:
    if form == "hf":
        whole.expect("flash_mode", False)  # only the GitHub format has a router
    if "flash_mode" not in whole.values or not whole.get("flash_mode", bool):
        return None
    relative, absolute = (
        whole.get(f"flash_{kind}_threshold", bounds_of(FlashConfig, f"{kind}_threshold"))
        for kind in ("relative", "absolute")
    )
    # Both numbers stand in the released code, not in its config.
    return FlashConfig(relative, absolute, heads=16, dropout=0.1)


def _side(part: Fields, key: str) -> int:
    """A length in pixels; HF writes [height, width]."""
    value = part.values.get(key)
    if not isinstance(value, list):
        return part.get(key, bounds_of(VisionConfig, key))
    if len(value) != 2 or value[0] != value[1]:
        raise InputError(f"{part.file}: {part.where(key)} is {shown(value)}; only squares are supported")
    check_value(value[0], bounds_of(VisionConfig, key), f"{part.file}: {part.where(key)}[0]")
    return value[0]


def _text(part: Fields, whole: Fields) -> TextConfig:
    family, kind = _architecture(part)
    found = {field: _read(part, field, key) for field, key in kind.keys.items()}
    moe = {field.removeprefix("moe."): found.pop(field) for field in list(found) if field.startswith("moe.")}
    theta, stretched = _rope(part, kind)
    if "head_width" not in found:
        found["head_width"] = _share(part, kind, found["width"], found["heads"])
    given = {
        "window": None,
        "yarn": None,
        "ntk": None,
        **found,
        **stretched,
        "moe": MoeConfig(**moe) if moe else None,
    }
    text = TextConfig(family=family.name, rope_theta=theta, tie_embeddings=_tied(part, whole), **given)
    for key, value in {**kind.constants(text), **kind.checked(text)}.items():
        part.expect(key, value)
    return text


def _architecture(part: Fields) -> tuple[Family, ModelKind]:
    name = part.get("model_type", str)
    family, kind = _KINDS.get(name, (None, None))
    architectures = part.optional("architectures", list[str]) or [kind and kind.architecture]
    if family is None or architectures[0] != kind.architecture:
        known = ", ".join(f"{name} ({kind.architecture})" for name, (_, kind) in _KINDS.items())
        raise InputError(
            f"{part.file}: the language model is {name} ({architectures[0]}); supported families are {known}"
        )
    return family, kind


def _share(part: Fields, kind: ModelKind, width: int, heads: int) -> int:
    """A head's share of the model's width."""
    if heads < 1 or width % heads:
        keys = part.where(kind.keys["width"].name), part.where(kind.keys["heads"].name)
        raise InputError(f"{part.file}: {keys[0]} {width} is not a multiple of {keys[1]} {heads}; make it one")
    return width // heads


def _read(part: Fields, field: str, key: Key) -> Any:
    bounds = bounds_of(MoeConfig, field[4:]) if field.startswith("moe.") else bounds_of(TextConfig, field)
    return part.get(next((name for name in (key.name, *key.also) if name in part.values), key.name), not_null(bounds))


def _rope(part: Fields, kind: ModelKind) -> tuple[float, dict[str, Any]]:
    """theta, and the field of `TextConfig` that stretches positions, if any does."""
    name = "rope_parameters" if "rope_parameters" in part.values else "rope_scaling"  # transformers >= 5; before
    if name == "rope_scaling" and part.values.get(name) is None and "default" in kind.ropes:
        return part.get("rope_theta", _THETA), {}
    rope = part.part(name)
    key = next((key for key in kind.rope_names if key in rope.values), kind.rope_names[0])
    found = kind.ropes[0] if name == "rope_parameters" and key not in rope.values else rope.get(key, str)
    if found not in kind.ropes:
        rope.expect(key, kind.ropes[-1])
    theta = (rope if "rope_theta" in rope.values else part).get("rope_theta", _THETA)
    return theta, _ROPES[found](rope, part)


def _yarn(rope: Fields, part: Fields) -> dict[str, Any]:
    rope.get("truncate", bool)  # absent it would mean True
    rope.expect("truncate", False)
    for key in ("attention_factor", "mscale", "mscale_all_dim"):
        rope.expect(key, None)
    factor, fast, slow = (rope.get(key, bounds_of(YarnConfig, key)) for key in ("factor", "beta_fast", "beta_slow"))
    positions = rope.get("original_max_position_embeddings", bounds_of(YarnConfig, "positions"))
    return {"yarn": YarnConfig(factor, fast, slow, positions)}


def _dynamic(rope: Fields, part: Fields) -> dict[str, Any]:
    factor = rope.get("factor", bounds_of(NtkConfig, "factor"))
    return {"ntk": NtkConfig(factor, part.get("max_position_embeddings", bounds_of(NtkConfig, "positions")))}


_ROPES = {"default": lambda rope, part: {}, "yarn": _yarn, "dynamic": _dynamic}


def _tied(part: Fields, whole: Fields) -> bool:
    """True where either level says so: the GitHub code and transformers 4.5x obey the language model's flag, which is
    left out where False; transformers 5 obeys the top level's. Should the file then hold an output matrix of its own,
    the account of tensors settles it."""
    places = [place for place in (part, whole) if "tie_word_embeddings" in place.values]
    return any(place.get("tie_word_embeddings", bool) for place in places)
