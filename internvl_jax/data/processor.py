"""Chat messages in, model inputs out: what stands between a user and a model.

1. OpenAI-style messages are read: text, image_url and image parts, pictures kept where they stand in the text.
2. Pictures become tiles, the conversation becomes tokens, and both are checked against each other.
3. The processor is saved beside the model (`processor` section of config.json + tokenizer files), and can be read from
   a released directory of either format.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from internvl_jax.data.media import images, tiling
from internvl_jax.data.text import templates
from internvl_jax.data.text.thinking import ChannelStream
from internvl_jax.data.text.tokenizer import DecodeStream, Tokenizer
from internvl_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ChatInputs:
    """One conversation: int32 tokens [T], uint8 tiles [G, H, W, 3] (G = 0 without pictures), tokens of each picture."""

    tokens_T: np.ndarray
    tiles_GHWC: np.ndarray
    image_token_counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Processor:
    """Turns messages into model inputs; `processor(messages)`."""

    image_config: tiling.ImageConfig
    tokenizer: Tokenizer
    template: templates.Template

    def __post_init__(self) -> None:
        if self.template.stop not in self.tokenizer.added_tokens:
            raise InputError(
                f"the chat template {self.template.name!r} ends answers in {self.template.stop}, a token that the "
                "tokenizer lacks; use the template and the tokenizer files of one model."
            )

    def with_reasoning(self, effort: str) -> "Processor":
        """The same processor, asking for this much reasoning ('low', 'medium', 'high'; GPT-OSS alone has the choice).

        The system message of a conversation that has one stands as it is.
        Raises InputError where the template does not know the effort.
        """
        return dataclasses.replace(self, template=self.template.with_reasoning(effort))

    def decode_stream(self) -> DecodeStream | ChannelStream:
        """Decodes an answer token by token, thinking between <think> and </think>; a `DecodeStream` or its like."""
        return self.template.speech.stream(self.tokenizer)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return tuple(dict.fromkeys((self.tokenizer.token_id(self.template.stop), self.tokenizer.eos)))

    def __call__(
        self, messages: Sequence[dict], max_dynamic_patch: int | None = None, allow_paths: bool = True
    ) -> ChatInputs:
        """Model inputs for OpenAI-style messages; the last one must be the user's.

        Content is a string or a list of {"type": "text", "text"}, {"type": "image", "image": path, bytes or PIL
        picture} and {"type": "image_url", "image_url": {"url", "detail"}}; detail "low" means one tile. A picture is
        followed by a newline, as `<image>` is in the release. max_dynamic_patch bounds the tiles of each picture in
        place of the model's own limit. allow_paths=False refuses files of this machine.
        Raises InputError that names message and part.
        """
        config = self.image_config
        if max_dynamic_patch is not None:
            config = tiling.limit_tiles(config, max_dynamic_patch)
        turns, tiles = [], []
        for i, message in enumerate(messages):
            turn, pictures = _read_message(message, f"message {i}", config, allow_paths)
            turns.append(turn)
            tiles += pictures
        if not turns or turns[-1].role != "user":
            raise InputError("the last message must be the user's; there is nothing to answer.")
        counts = tuple(config.tokens_per_tile * len(tiles_GHWC) for tiles_GHWC in tiles)
        tokens_T = self.template.encode_prompt(turns, counts, self.tokenizer)
        empty_GHWC = np.zeros((0, config.tile_size, config.tile_size, 3), np.uint8)
        inputs = ChatInputs(tokens_T, np.concatenate([empty_GHWC, *tiles]), counts)
        check_inputs(inputs, config.tokens_per_tile, self.tokenizer.image_context)
        return inputs

    def to_dict(self) -> dict:
        """The `processor` section of config.json (the tokenizer has files of its own)."""
        image = dataclasses.asdict(self.image_config)
        return {"image": image, "template": self.template.name, "system": self.system}

    @property
    def system(self) -> str | None:
        """The system text of conversations that bring none; None where it is the one that the template is known by."""
        text = self.template.default_system
        return None if text == templates.get_template(self.template.name).default_system else text

    @classmethod
    def from_dict(cls, section: dict, directory: str | pathlib.Path) -> "Processor":
        """The processor of a `processor` section and the tokenizer files in directory; strict about keys.

        Sections that were stored before there was a system text of their own have no 'system'.
        """
        section = {"system": None, **section} if isinstance(section, dict) else section
        _check_keys(section, {"image", "template", "system"}, "the processor section")
        fields = {field.name for field in dataclasses.fields(tiling.ImageConfig)}
        _check_keys(section["image"], fields, "the image part of the processor section")
        config = tiling.ImageConfig(**section["image"])
        template = templates.get_template(section["template"]).with_system(section["system"])
        return cls(config, Tokenizer.load(directory), template)

    @classmethod
    def from_released(cls, directory: str | pathlib.Path, template: str = templates.INTERNVL2_5.name) -> "Processor":
        """The processor of a released checkpoint directory, GitHub or HF format.

        template: name of the one to use where config.json names none, as the HF format's doesn't.
        """
        directory = pathlib.Path(directory)
        config = _read_json(directory / "config.json")
        readers = {"internvl_chat": _github_image_config, "internvl": _hf_image_config}
        if config.get("model_type") not in readers:
            raise InputError(
                f"{directory}/config.json has model_type {config.get('model_type')!r}; released checkpoints of this "
                "family have 'internvl_chat' (GitHub format) or 'internvl' (HF format)."
            )
        try:
            image_config = readers[config["model_type"]](config, directory)
        except KeyError as error:
            raise InputError(f"{directory}/config.json lacks {error}; copy the released file again.") from None
        system = config.get("system_message")  # VisualPRM's: what its questions to the critic are
        if not isinstance(system, str | None):
            raise InputError(f"{directory}/config.json has system_message {system!r}; it must be a text.")
        written = templates.get_template(config.get("template") or template).with_system(system)
        return cls(image_config, Tokenizer.load(directory), written)


def check_inputs(inputs: ChatInputs, tokens_per_tile: int, image_context: int) -> None:
    """Raises InputError unless there are as many context tokens as the tiles need."""
    found, needed = int(np.sum(inputs.tokens_T == image_context)), tokens_per_tile * len(inputs.tiles_GHWC)
    if found != needed:
        raise InputError(f"the prompt has {found} picture tokens but its {len(inputs.tiles_GHWC)} tiles need {needed}.")


def _read_message(
    message: Any, where: str, config: tiling.ImageConfig, allow_paths: bool
) -> tuple[templates.Message, list[np.ndarray]]:
    """A templates.Message and the tiles of its pictures."""
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise InputError(f"{where} must be an object with role system, user or assistant.")
    content = message.get("content")
    if isinstance(content, str):
        return templates.Message(message["role"], (content,)), []
    if not isinstance(content, list | tuple):
        raise InputError(f"{where} must have content that is a string or a list of parts.")
    parts: list[str | templates.Slot] = []
    tiles: list[np.ndarray] = []
    for j, part in enumerate(content):
        text, source, detail = _read_part(part, f"part {j} of {where}")
        if text is not None:
            parts.append(text)
            continue
        if message["role"] != "user":
            raise InputError(f"part {j} of {where} is a picture; only user messages may have pictures.")
        try:
            limited = tiling.limit_tiles(config, 1) if detail == "low" else config
            tiles.append(images.tile_image(images.load_image(source, limited, allow_paths=allow_paths), limited))
        except InputError as error:
            raise InputError(f"part {j} of {where}: {error}") from None
        parts += [templates.IMAGE, "\n"]
    return templates.Message(message["role"], tuple(parts)), tiles


def _read_part(part: Any, where: str) -> tuple[str | None, Any, str | None]:
    """(text, None, None) or (None, source of a picture, detail)."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"], None, None
    if kind == "image" and part.get("image") is not None:
        return None, part["image"], "auto"
    if kind == "image_url":
        url = part.get("image_url")
        url = {"url": url} if isinstance(url, str) else url
        detail = url.get("detail", "auto") if isinstance(url, dict) else None
        if detail in ("auto", "low", "high") and isinstance(url.get("url"), str):
            return None, url["url"], detail
    raise InputError(
        f'{where} must be {{"type": "text", "text": ...}}, {{"type": "image", "image": ...}} or '
        '{"type": "image_url", "image_url": {"url": ..., "detail": "auto", "low" or "high"}}.'
    )


def _check_keys(section: Any, expected: set[str], where: str) -> None:
    if not isinstance(section, dict):
        raise InputError(f"{where} of config.json must be an object.")
    missing, unknown = sorted(expected - section.keys()), sorted(section.keys() - expected)
    if missing or unknown:
        raise InputError(f"{where} of config.json lacks {missing} and has unknown {unknown}.")


def _github_image_config(config: dict, directory: pathlib.Path) -> tiling.ImageConfig:
    vision = config["vision_config"]
    size = config.get("force_image_size") or vision["image_size"]
    if config.get("pad2square"):
        raise InputError(f"{directory}/config.json asks for pad2square, which no released 3.5 model uses.")
    dynamic = config.get("dynamic_image_size", True)
    return tiling.ImageConfig(
        tile_size=size,
        tokens_per_tile=int((size // vision["patch_size"]) ** 2 * config["downsample_ratio"] ** 2),
        min_tiles=config["min_dynamic_patch"] if dynamic else 1,
        max_tiles=config["max_dynamic_patch"] if dynamic else 1,
        thumbnail=config["use_thumbnail"],
        apply_exif=False,
        max_pixels=tiling.DEFAULT_MAX_PIXELS,
    )


def _hf_image_config(config: dict, directory: pathlib.Path) -> tiling.ImageConfig:
    vision = config["vision_config"]
    preprocessor_path = directory / "preprocessor_config.json"
    preprocessor = _read_json(preprocessor_path) if preprocessor_path.exists() else {}
    height, width = vision["image_size"]
    if height != width:
        raise InputError(f"{directory}/config.json has tiles of {width} x {height} pixels; they must be square.")
    return tiling.ImageConfig(
        tile_size=width,
        tokens_per_tile=config["image_seq_length"],
        min_tiles=preprocessor.get("min_patches", 1),
        max_tiles=preprocessor.get("max_patches", 12),
        thumbnail=True,  # the HF image processor always adds it
        apply_exif=False,
        max_pixels=tiling.DEFAULT_MAX_PIXELS,
    )


def _read_json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the directory of a released checkpoint.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); copy the file again.") from None
