"""Prompts of what clients send, and what is told of their pictures."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from internvl_jax.data import PromptSettings, Tokenizer
from internvl_jax.models import InternVLConfig
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.orders import Order, conversation
from internvl_jax.serving.prompt_workers import PromptWorkers
from internvl_jax.serving.refusals import Refusal
from internvl_jax.serving.schema import Message
from internvl_jax.serving.service import ReadyPrompt, Writing

_REMOTE = ("http:", "https:")
_PIECE = 1 << 12  # tokens that are decoded at a time


@dataclasses.dataclass
class Prompting:
    """Makes prompts.

    Attributes:
      config: the model's.
      tokenizer: the model's.
      workers: decode pictures and write prompts.
      fetch: gets the bytes of a picture from another host.
      limits: of texts.
      efforts: whether the model has a choice of reasoning efforts.
      thumbnail: whether a picture of several tiles has one more that shows the whole.
      decoding: held by whoever decodes tokens: many threads of Python's own would hold up the streams.
    """

    config: InternVLConfig
    tokenizer: Tokenizer
    workers: PromptWorkers
    fetch: Callable[[str], Awaitable[bytes]]
    limits: Limits
    efforts: bool
    thumbnail: bool
    decoding: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)

    async def chat(self, messages: list[Message], order: Order) -> ReadyPrompt:
        """The prompt of a conversation.

        Raises:
          Refusal: pictures or texts that can't be read, or are too much.
        """
        settings = PromptSettings.wanted(self.efforts, order.thinking, order.effort, order.max_tiles)
        inputs = await self.workers.prompt(await self._fetched(conversation(messages)), settings=settings)
        return ReadyPrompt(inputs.tokens_T, inputs.tiles_GHWC, settings.begun, inputs.image_sizes, settings.thinking)

    async def conversation(self, messages: list[Message], max_tiles: int | None) -> ReadyPrompt:
        """The same without a wish how it is answered."""
        settings = PromptSettings(max_dynamic_patch=max_tiles)
        inputs = await self.workers.prompt(await self._fetched(conversation(messages)), settings=settings)
        return ReadyPrompt(inputs.tokens_T, inputs.tiles_GHWC, "", inputs.image_sizes)

    async def _fetched(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages in which the bytes of pictures of other hosts stand for their addresses."""
        addresses = [
            part["image_url"]
            for message in messages
            if not isinstance(message["content"], str)
            for part in message["content"]
            if part["type"] == "image_url" and part["image_url"]["url"].lower().startswith(_REMOTE)
        ]
        if len(addresses) > self.limits.images:
            raise Refusal(
                400, f"the request has more than {self.limits.images} pictures, the limit; send fewer.", "messages"
            )
        fetching = [asyncio.ensure_future(self.fetch(each["url"])) for each in addresses]
        try:
            for image, data in zip(addresses, await asyncio.gather(*fetching), strict=True):
                image["url"] = data
        finally:
            for each in fetching:  # where one is refused, nobody reads the others
                each.cancel()
        return messages

    async def text(self, prompt: str | list[int]) -> ReadyPrompt:
        """A plain text, or tokens.

        Raises:
          Refusal: it is too long.
        """
        if isinstance(prompt, str):
            if len(prompt) > self.limits.text_chars:
                message = f"the prompt has {len(prompt):,} characters; this server takes {self.limits.text_chars:,}."
                raise Refusal(400, message, "prompt")
            encoded = await asyncio.to_thread(self.tokenizer.encode, prompt)
            prompt = [*self.tokenizer.begin, *encoded]
        side = self.config.vision.image_size
        return ReadyPrompt(np.array(prompt, np.int32), np.zeros((0, side, side, 3), np.uint8), None)

    async def decoded(self, tokens: list[int]) -> str:
        """The text of tokens, control tokens included.

        Raises:
          Refusal: there are too many.
        """
        if len(tokens) > self.limits.text_chars:
            message = f"there are {len(tokens):,} tokens; this server takes {self.limits.text_chars:,}."
            raise Refusal(400, message, "tokens")
        stream = self.tokenizer.decode_stream(skip_special=False)
        feed = lambda piece: "".join(map(stream.feed, piece))
        texts = []
        for at in range(0, len(tokens), _PIECE):  # between two pieces it can be broken off, and is not two at a time
            async with self.decoding:
                texts.append(await asyncio.to_thread(feed, tokens[at : at + _PIECE]))
        return "".join(texts) + stream.finish()

    def told(self, writing: Writing) -> dict[str, Any]:
        """Which tiles of which pictures the model read with how many tokens, where the request asks for it."""
        if not writing.order.tiles or writing.seen is None:
            return {}
        full, flash = self.config.tokens_per_tile, self.config.flash is not None
        width = full + (self.config.tokens_per_compressed_tile if flash else 0)
        sources_P = writing.seen.sources_T[writing.seen.sources_T >= 0]
        compressed = {int(tile) for tile in (sources_P[sources_P % width >= full] // width)}
        counts = np.bincount(sources_P // width) if len(sources_P) else np.zeros(0, int)
        probability_G = writing.seen.probability_G
        pictures, first = [], 0
        for wide, high, columns, rows in writing.prompt.sizes:
            tiles = range(first, first + columns * rows + (self.thumbnail and columns * rows > 1))
            first = tiles.stop
            pictures.append(
                {
                    "width": wide,
                    "height": high,
                    "columns": columns,
                    "rows": rows,
                    "thumbnail": len(tiles) > columns * rows,
                    "tokens": int(counts[tiles.start : tiles.stop].sum()),
                    "compressed": [tile in compressed for tile in tiles],
                    "probability": None if probability_G is None else probability_G[tiles.start : tiles.stop].tolist(),
                }
            )
        return {"internvl": {"pictures": pictures}}
