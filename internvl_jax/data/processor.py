"""Chat messages in, model inputs out: what stands between a user and a model.

1. OpenAI-style messages are read (`messages`), pictures and videos kept where they stand in the text.
2. Pictures and frames become tiles, the conversation becomes tokens, and both are checked against each other.
3. The processor is saved beside the model (`processor` section of config.json + tokenizer files), and can be read from
   a released directory of either format.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from internvl_jax.data.media import images, tiling
from internvl_jax.data.media.video import frame_limits, show_video, video_info
from internvl_jax.data.messages import PartPicture, PartVideo, read_messages
from internvl_jax.data.text import templates
from internvl_jax.data.text.thinking import THINKING_SYSTEM, ChannelStream
from internvl_jax.data.text.tokenizer import DecodeStream, Tokenizer
from internvl_jax.errors import InputError
from internvl_jax.validation import (
    Fields,
    Fraction,
    bounds_of,
    build,
    check_fields,
    read_json,
)


@dataclasses.dataclass(frozen=True)
class ChatInputs:
    """One conversation.

    Attributes:
      tokens_T: int32.
      tiles_GHWC: uint8; G = 0 without pictures.
      image_token_counts: tokens of each picture.
      image_sizes: width and height of each picture in pixels, then columns and rows of its tiles.
    """

    tokens_T: np.ndarray
    tiles_GHWC: np.ndarray
    image_token_counts: tuple[int, ...]
    image_sizes: tuple[tuple[int, int, int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class ShownMessages:
    """What messages say and show.

    Attributes:
      turns: with a slot for each picture and frame.
      tiles_GHWC, image_token_counts, image_sizes: see `ChatInputs`.
    """

    turns: Sequence[templates.Message]
    tiles_GHWC: np.ndarray
    image_token_counts: tuple[int, ...]
    image_sizes: tuple[tuple[int, int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class _Section:
    """What config.json says of a processor."""

    image: dict
    template: str
    system: str | None

    def __post_init__(self) -> None:
        check_fields(self, "the processor section of config.json")


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

    def with_thinking(self) -> "Processor":
        """The same processor, asking the model to think before it answers, by the released system text.

        The system message of a conversation that has one stands as it is.
        """
        return dataclasses.replace(self, template=self.template.with_system(THINKING_SYSTEM))

    def decode_stream(self) -> DecodeStream | ChannelStream:
        """Decodes an answer token by token, thinking between <think> and </think>; a `DecodeStream` or its like."""
        return self.template.speech.stream(self.tokenizer)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return tuple(dict.fromkeys((self.tokenizer.token_id(self.template.stop), self.tokenizer.eos)))

    def begin(self, text: str) -> list[int]:
        """Ids that the prompt of an answer begun so ends in: who reads the answer back feeds them first."""
        return self.tokenizer.encode_items(self.template.speech.begin(text, self.tokenizer))

    def __call__(
        self,
        messages: Sequence[dict],
        max_dynamic_patch: int | None = None,
        allow_paths: bool = True,
        begun: str = "",
    ) -> ChatInputs:
        """Model inputs for OpenAI-style messages; the last one must be the user's.

        Content is a string or a list of {"type": "text", "text"}, {"type": "image", "image": path, URL, bytes or PIL
        picture}, the same with "url", "path" or "base64" for "image" (as transformers has it), and {"type":
        "image_url", "image_url": {"url", "detail", "max_dynamic_patch"}}, where the URL may be bytes; detail "low"
        means one tile. A picture is followed by a newline, as `<image>` is in the release. max_dynamic_patch bounds
        the tiles of each picture in place of the model's own limit; a picture's own wins over that and over its detail.

        Videos are {"type": "video", "video": path, folder of frames, URL or bytes} likewise and {"type": "video_url",
        "video_url": {"url"}}, with "num_frames", "fps" and "clip" beside the source (see `VideoOptions`). A frame has
        one tile and a line, `Frame1: <image>`, as in the release's guide; each video counts from 1.

        allow_paths=False refuses files of this machine. begun: how the answer starts, for the model to go on from.
        Raises InputError that names message and part.
        """
        shown = self.show(messages, max_dynamic_patch, allow_paths)
        return self.encode(shown, shown.turns, begun)

    def show(
        self, messages: Sequence[dict], max_dynamic_patch: int | None = None, allow_paths: bool = True
    ) -> ShownMessages:
        """The turns of messages, and tiles of what they show; arguments and errors are those of a call."""
        config, sizes = self._limited(max_dynamic_patch), list[tuple[int, int, int, int]]()

        def look(picture: PartPicture) -> np.ndarray:
            limited = picture.limited(config)
            image = images.load_image(picture.source, limited, allow_paths=allow_paths)
            sizes.append((*image.size, *tiling.choose_grid(*image.size, limited)))
            return images.tile_image(image, limited)

        def watch(clip: PartVideo) -> list[np.ndarray]:
            tile = functools.partial(images.tile_image, config=tiling.frame_tiles(config))
            found = show_video(clip.source, clip.options.choose, tile, frame_limits(config), allow_paths=allow_paths)
            sizes.extend([(found.info.width, found.info.height, 1, 1)] * len(found.frames))
            return found.frames

        turns, tiles = read_messages(messages, look, watch)
        counts = tuple(config.tokens_per_tile * len(tiles_GHWC) for tiles_GHWC in tiles)
        empty_GHWC = np.zeros((0, config.tile_size, config.tile_size, 3), np.uint8)
        return ShownMessages(turns, np.concatenate([empty_GHWC, *tiles]), counts, tuple(sizes))

    def encode(self, shown: ShownMessages, turns: Sequence[templates.Message], begun: str = "") -> ChatInputs:
        """Model inputs for turns about the pictures that were shown, in their order.

        Raises:
          InputError: the turns have other numbers of pictures.
        """
        counts = shown.image_token_counts
        tokens_T = self.template.encode_prompt(turns, counts, self.tokenizer, begun=begun)
        inputs = ChatInputs(tokens_T, shown.tiles_GHWC, counts, shown.image_sizes)
        check_inputs(inputs, self.image_config.tokens_per_tile, self.tokenizer.image_context)
        return inputs

    def num_tiles(
        self, messages: Sequence[dict], max_dynamic_patch: int | None = None, allow_paths: bool = True
    ) -> int:
        """Tiles of all pictures and frames of messages, without decoding one. Arguments and errors are those of a
        call."""
        config = self._limited(max_dynamic_patch)

        def look(picture: PartPicture) -> int:
            limited = picture.limited(config)
            return tiling.num_tiles(*images.image_size(picture.source, limited, allow_paths=allow_paths), limited)

        def watch(clip: PartVideo) -> list[int]:
            info = video_info(clip.source, frame_limits(config), allow_paths=allow_paths)
            return [1 for _ in clip.options.choose(info)]

        return sum(read_messages(messages, look, watch)[1])

    def _limited(self, max_dynamic_patch: int | None) -> tiling.ImageConfig:
        config = self.image_config
        return config if max_dynamic_patch is None else tiling.limit_tiles(config, max_dynamic_patch)

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
        parts = build(_Section, section, "the processor section of config.json")
        config = build(tiling.ImageConfig, parts.image, "the image part of the processor section of config.json")
        template = templates.get_template(parts.template).with_system(parts.system)
        return cls(config, Tokenizer.load(directory), template)

    @classmethod
    def from_released(cls, directory: str | pathlib.Path, template: str = templates.INTERNVL2_5.name) -> "Processor":
        """The processor of a released checkpoint directory, GitHub or HF format.

        template: name of the one to use where config.json names none, as the HF format's doesn't.
        """
        directory = pathlib.Path(directory)
        path = directory / "config.json"
        config = Fields(path, "", read_json(path))
        readers = {"internvl_chat": _github_image_config, "internvl": _hf_image_config}
        image_config = readers[config.get("model_type", Literal["internvl_chat", "internvl"])](config, directory)
        name = config.optional("template", str, template)
        # VisualPRM's: what its questions to the critic are.
        system = config.optional("system_message", str)
        return cls(image_config, Tokenizer.load(directory), templates.get_template(name).with_system(system))


def check_inputs(inputs: ChatInputs, tokens_per_tile: int, image_context: int) -> None:
    """Raises InputError unless there are as many context tokens as the tiles need."""
    found, needed = int(np.sum(inputs.tokens_T == image_context)), tokens_per_tile * len(inputs.tiles_GHWC)
    if found != needed:
        raise InputError(f"the prompt has {found} picture tokens but its {len(inputs.tiles_GHWC)} tiles need {needed}.")


def _github_image_config(config: Fields, directory: pathlib.Path) -> tiling.ImageConfig:
    vision = config.part("vision_config")
    size = config.optional("force_image_size", _bounds("tile_size")) or vision.get("image_size", _bounds("tile_size"))
    config.expect("pad2square", False)
    dynamic = config.optional("dynamic_image_size", bool, True)
    patches = size // vision.get("patch_size", _bounds("tile_size"))
    return tiling.ImageConfig(
        tile_size=size,
        tokens_per_tile=int(patches**2 * config.get("downsample_ratio", Fraction) ** 2),
        min_tiles=config.get("min_dynamic_patch", _bounds("min_tiles")) if dynamic else 1,
        max_tiles=config.get("max_dynamic_patch", _bounds("max_tiles")) if dynamic else 1,
        thumbnail=config.get("use_thumbnail", bool),
        apply_exif=False,
        max_pixels=tiling.DEFAULT_MAX_PIXELS,
    )


def _hf_image_config(config: Fields, directory: pathlib.Path) -> tiling.ImageConfig:
    path = directory / "preprocessor_config.json"
    preprocessor = Fields(path, "", read_json(path) if path.exists() else {})
    vision = config.part("vision_config")
    size = vision.get("image_size", Annotated[list[tiling.Side], Meta(min_length=2, max_length=2)])
    if size[0] != size[1]:
        raise InputError(f"{directory}/config.json has tiles of {size[1]} x {size[0]} pixels; they must be square.")
    return tiling.ImageConfig(
        tile_size=size[0],
        tokens_per_tile=config.get("image_seq_length", _bounds("tokens_per_tile")),
        min_tiles=preprocessor.optional("min_patches", _bounds("min_tiles"), 1),
        max_tiles=preprocessor.optional("max_patches", _bounds("max_tiles"), 12),
        thumbnail=True,  # the HF image processor always adds it
        apply_exif=False,
        max_pixels=tiling.DEFAULT_MAX_PIXELS,
    )


def _bounds(field: str) -> Any:
    return bounds_of(tiling.ImageConfig, field)
