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
from internvl_jax.serving.service import Prompt, Writing

_REMOTE = ("http:", "https:")


@dataclasses.dataclass
class Prompting:
    """Makes prompts.

    Attributes:
      config: the model's.
      tokenizer: the model's.
      workers: decode pictures and write prompts.
      fetch: gets the bytes of a picture from another host.
      limits: of texts.
    """

    config: InternVLConfig
    tokenizer: Tokenizer
    workers: PromptWorkers
    fetch: Callable[[str], Awaitable[bytes]]
    limits: Limits

    async def chat(self, messages: list[Message], order: Order) -> Prompt:
        """The prompt of a conversation.

        Raises:
          Refusal: pictures or texts that can't be read, or are too much.
        """
        settings = PromptSettings(order.thinking, order.effort, order.max_tiles)
        inputs = await self.workers.prompt(await self._fetched(conversation(messages)), settings)
        return Prompt(inputs.tokens_T, inputs.tiles_GHWC, settings.begun, inputs.picture_sizes)

    async def conversation(self, messages: list[Message], max_tiles: int | None) -> Prompt:
        """The same without a wish how it is answered."""
        inputs = await self.workers.prompt(
            await self._fetched(conversation(messages)), PromptSettings(max_dynamic_patch=max_tiles)
        )
        return Prompt(inputs.tokens_T, inputs.tiles_GHWC, "", inputs.picture_sizes)

    async def text(self, prompt: str | list[int]) -> Prompt:
        """A plain text, which may come as tokens.

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
        return Prompt(np.array(prompt, np.int32), np.zeros((0, side, side, 3), np.uint8), None)
