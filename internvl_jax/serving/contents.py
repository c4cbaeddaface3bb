"""What the messages of a request may bring, bounded while it is still text: nothing has been decoded then."""

import dataclasses
import re
from typing import Any

from internvl_jax.data import ImageConfig, PromptSettings, Tiles
from internvl_jax.errors import InputError
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.refusals import Refusal
from internvl_jax.validation import check_value, describe

_DATA_URL = {kind: re.compile(rf"data:{kind}/[a-zA-Z0-9.+-]{{1,40}};base64,") for kind in ("image", "video")}
_VIDEO_KEYS = ("num_frames", "fps", "clip")


def admit(messages: Any, settings: PromptSettings, config: ImageConfig, limits: Limits) -> list[dict]:
    """The messages as a worker gets them, every picture with its limit of tiles.

    Pictures are data URLs, or bytes where the server has fetched them; videos are data URLs. detail "low" halves the
    model's limit of tiles; a picture's own max_dynamic_patch wins over the request's, and that over detail.

    Raises:
      Refusal: too many pictures, videos, bytes or characters, tiles that no picture can have, or no messages at all.
    """
    if not isinstance(messages, list) or not messages:
        raise refused("messages must be a list of at least one object with role and content.")
    counts = _Counts(limits)
    return [_admit_message(message, f"message {i}", settings, config, counts) for i, message in enumerate(messages)]


@dataclasses.dataclass
class _Counts:
    """What the messages so far have."""

    limits: Limits
    images: int = 0
    videos: int = 0
    characters: int = 0

    def add_text(self, text: str) -> None:
        self.characters += len(text)
        if self.characters > self.limits.text_chars:
            raise refused(
                f"the request has at least {self.characters} characters of text, more than the limit of "
                f"{self.limits.text_chars}; send less."
            )

    def add_image(self, url: Any, where: str) -> None:
        self.images += 1
        if self.images > self.limits.images:
            raise refused(f"the request has more than {self.limits.images} pictures, the limit; send fewer.")
        size = len(url) if isinstance(url, bytes) else _encoded_bytes(url, where, "image")
        if size > self.limits.image_bytes:
            raise refused(
                f"the picture of {where} has {size} bytes, more than the limit of {self.limits.image_bytes}; scale it "
                "down or compress it."
            )

    def add_video(self, url: Any, where: str) -> None:
        self.videos += 1
        if self.videos > self.limits.videos:
            raise refused(f"the request has more than {self.limits.videos} videos, the limit; send fewer.")
        size = _encoded_bytes(url, where, "video")
        if size > self.limits.video_bytes:
            raise refused(
                f"the video of {where} has {size} bytes, more than the limit of {self.limits.video_bytes}; cut it, or "
                "scale it down."
            )


def _encoded_bytes(url: Any, where: str, kind: str) -> int:
    """Of what a data URL has, about."""
    header = _DATA_URL[kind].match(url) if isinstance(url, str) else None
    if header is None:
        raise refused(f"{where} must have a data URL, data:{kind}/...;base64,..., and no other address.")
    return (len(url) - header.end()) * 3 // 4


def _admit_message(message: Any, where: str, settings: PromptSettings, config: ImageConfig, counts: _Counts) -> dict:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if role not in ("system", "user", "assistant"):
        raise refused(f"{where} must be an object with role system, user or assistant.")
    if isinstance(content, str):
        counts.add_text(content)
        return {"role": role, "content": content}
    if not isinstance(content, list):
        raise refused(f"{where} must have content that is a text or a list of parts.")
    parts = []
    for j, part in enumerate(content):
        place = f"part {j} of {where}"
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            counts.add_text(part["text"])
            parts.append({"type": "text", "text": part["text"]})
        elif isinstance(part, dict) and part.get("type") == "image_url":
            image = part.get("image_url")
            image = image if isinstance(image, dict) else {"url": image}
            counts.add_image(image.get("url"), place)
            limit = _tile_limit(image, place, settings, config)
            parts.append({"type": "image_url", "image_url": {"url": image["url"], "max_dynamic_patch": limit}})
        elif isinstance(part, dict) and part.get("type") == "video_url":
            video = part.get("video_url")
            video = video if isinstance(video, dict) else {"url": video}
            counts.add_video(video.get("url"), place)
            wanted = {key: video[key] for key in _VIDEO_KEYS if video.get(key) is not None}
            parts.append({"type": "video_url", "video_url": {"url": video["url"], **wanted}})
        else:
            raise refused(
                f'{place} must be {{"type": "text", "text"}}, {{"type": "image_url", "image_url"}} or {{"type": '
                '"video_url", "video_url"}.'
            )
    return {"role": role, "content": parts}


def _tile_limit(image: dict, where: str, settings: PromptSettings, config: ImageConfig) -> int | None:
    """A picture's own limit of tiles; None for the request's or the model's."""
    own, detail = image.get("max_dynamic_patch"), image.get("detail", "auto")
    if detail not in ("auto", "low", "high"):
        raise refused(f'{where} must have the detail "auto", "low" or "high".')
    if own is not None:
        try:
            check_value(own, Tiles, "")
        except InputError:
            given = repr(own)[:40]
            raise refused(f"max_dynamic_patch of {where} is {given}; it must be {describe(Tiles)}.") from None
        return own
    return max(1, config.max_tiles // 2) if detail == "low" and settings.max_dynamic_patch is None else None


def refused(message: str, param: str = "messages", code: str | None = None) -> Refusal:
    """What is wrong with the contents of a request."""
    return Refusal(400, message, param, code)
