"""Prompts of what clients send."""

import asyncio
import types

import pytest

from internvl_jax.serving import Limits
from internvl_jax.serving.prompting import Prompting
from internvl_jax.serving.refusals import Refusal
from internvl_jax.serving.schema import TokenizeRequest


def test_one_refused_picture_ends_the_fetching_of_the_others():
    """Nobody waits for them, and a request may name as many as the limit has."""
    ended = []

    async def fetch(url):
        if url.endswith("bad"):
            raise Refusal(400, "no")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(url)

    parts = [{"type": "image_url", "image_url": {"url": f"https://a/{name}"}} for name in ("1", "2", "bad")]
    body = TokenizeRequest.model_validate({"messages": [{"role": "user", "content": parts}]})
    workers = types.SimpleNamespace(prompt=None)
    prompting = Prompting(None, None, workers, fetch, Limits(), efforts=False, thumbnail=True)

    async def ask():
        with pytest.raises(Refusal, match="no"):
            await prompting.conversation(body.messages, None)
        await asyncio.sleep(0)

    asyncio.run(ask())
    assert ended == ["https://a/1", "https://a/2"]
