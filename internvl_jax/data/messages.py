"""OpenAI-style messages, read: roles, texts, and where pictures and the frames of videos stand between them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from internvl_jax.data.media import images, tiling
from internvl_jax.data.media.video import VideoSource
from internvl_jax.data.media.video_options import VideoOptions
from internvl_jax.data.text import templates
from internvl_jax.errors import InputError
from internvl_jax.validation import build, check_value, shown

T = TypeVar("T")
Messages = Sequence[dict[str, Any]]  # a conversation, OpenAI-style

_SOURCES = ("url", "path", "base64")  # transformers' names, besides "image" and "video"
_OPTIONS = ("num_frames", "fps", "clip")


class PartPicture(NamedTuple):
    """A picture of a message.

    Attributes:
      limit: of its tiles; None for what holds without it.
    """

    source: images.Source
    limit: int | None

    def limited(self, config: tiling.ImageConfig) -> tiling.ImageConfig:
        """The options for this picture."""
        return config if self.limit is None else tiling.limit_tiles(config, self.limit)


class PartVideo(NamedTuple):
    """A video of a message, and which of its frames are shown."""

    source: VideoSource
    options: VideoOptions


def read_messages(
    messages: Any, look: Callable[[PartPicture], T], watch: Callable[[PartVideo], list[T]]
) -> tuple[list[templates.Message], list[T]]:
    """The turns of a conversation, and what was seen of each picture and frame, in the order of their slots.

    Args:
      look: sees a picture.
      watch: sees the frames of a video.

    Raises:
      InputError: messages that are none, or whatever `look` and `watch` raise, naming message and part.
    """
    if not isinstance(messages, list | tuple):
        raise InputError(f"messages are {shown(messages)}; they must be a list of objects with role and content.")
    turns, seen = [], []
    for i, message in enumerate(messages):
        turn, pictures = _read_message(message, f"message {i}", look, watch)
        turns.append(turn)
        seen += pictures
    if not turns or turns[-1].role != "user":
        raise InputError("the last message must be the user's; there is nothing to answer.")
    return turns, seen


def _read_message(
    message: Any, where: str, look: Callable[[PartPicture], T], watch: Callable[[PartVideo], list[T]]
) -> tuple[templates.Message, list[T]]:
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise InputError(f"{where} must be an object with role system, user or assistant.")
    content = message.get("content")
    if isinstance(content, str):
        return templates.Message(message["role"], (content,)), []
    if not isinstance(content, list | tuple):
        raise InputError(f"{where} must have content that is a string or a list of parts.")
    parts: list[str | templates.Slot] = []
    seen: list[T] = []
    for j, part in enumerate(content):
        found = _read_part(part, f"part {j} of {where}")
        if isinstance(found, str):
            parts.append(found)
            continue
        what = "picture" if isinstance(found, PartPicture) else "video"
        if message["role"] != "user":
            raise InputError(f"part {j} of {where} is a {what}; only user messages may have {what}s.")
        try:
            frames = [look(found)] if isinstance(found, PartPicture) else watch(found)
        except InputError as error:
            raise InputError(f"part {j} of {where}: {error}") from None
        seen += frames
        parts += [templates.IMAGE, "\n"] if what == "picture" else templates.frame_parts(len(frames))
    return templates.Message(message["role"], tuple(parts)), seen


def _read_part(part: Any, where: str) -> str | PartPicture | PartVideo:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind in ("image", "video"):
        source = _source(part, kind)
        if source is not None:
            return PartPicture(source, None) if kind == "image" else PartVideo(source, _options(part, where))
    if kind == "image_url":
        url = part.get("image_url")
        url = {"url": url} if isinstance(url, str) else url
        detail = url.get("detail", "auto") if isinstance(url, dict) else None
        if detail in ("auto", "low", "high") and isinstance(url.get("url"), str | bytes):
            own = url.get("max_dynamic_patch")
            if own is not None:
                check_value(own, tiling.Tiles, f"max_dynamic_patch of {where}")
            return PartPicture(url["url"], 1 if own is None and detail == "low" else own)
    if kind == "video_url":
        url = part.get("video_url")
        url = {"url": url} if isinstance(url, str) else url
        if isinstance(url, dict) and isinstance(url.get("url"), str | bytes):
            return PartVideo(url["url"], _options(url, where))
    raise InputError(
        f'{where} must be {{"type": "text", "text": ...}}, {{"type": "image", "image": ...}} (or one of "url", "path" '
        'and "base64" instead, as text), '
        '{"type": "image_url", "image_url": {"url": ..., "detail": "auto", "low" or "high"}}, there with a '
        '"max_dynamic_patch" if wanted, or {"type": "video", "video": ...}, with "num_frames", "fps" or "clip" if '
        "wanted."
    )


def _source(part: dict, kind: str) -> Any:
    """Where a picture or video is; None where a part doesn't say, or says it twice."""
    given = [key for key in (kind, *_SOURCES) if part.get(key) is not None]
    if len(given) != 1 or not (given == [kind] or isinstance(part[given[0]], str)):
        return None
    source = part[given[0]]
    encoded = given == ["base64"] and not source.startswith("data:")
    return f"data:{kind}/any;base64,{source}" if encoded else source


def _options(given: dict, where: str) -> VideoOptions:
    values: dict[str, Any] = {key: given.get(key) for key in _OPTIONS}
    try:
        return build(VideoOptions, values, where)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
