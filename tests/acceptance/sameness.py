"""Answers of a server beside those of the library, word by word."""

import asyncio
import base64
import io
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

import internvl_jax as ivl
from benchmarks.http_client import Address, ask
from checkpoint_convert import load_released
from internvl_jax.data import split_thinking

SEEDS = range(10)
ASKED = {"max_tokens": 32, "ignore_eos": True}


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Some picture of (width, height) pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def data_url(seed: int, size: tuple[int, int]) -> str:
    """The same as clients send it."""
    stream = io.BytesIO()
    picture(seed, size).save(stream, "png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def asked(text: str, *urls: str) -> dict[str, Any]:
    """A message of a user."""
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def conversations(side: int) -> list[list[dict[str, Any]]]:
    """With and without pictures of one and of several tiles, one and several turns."""
    small, wide, other = data_url(1, (side, side)), data_url(2, (3 * side, side)), data_url(3, (side, side))
    first = asked("what color is the shape?", small)
    return [
        [{"role": "user", "content": "what color is the sky?"}],
        [{"role": "system", "content": "Answer in one word."}, asked("is there a circle?")],
        [first],
        [asked("describe this picture", wide)],
        [asked("which of the two is darker?", small, other)],
        [first, {"role": "assistant", "content": "red"}, asked("and in this one?", other)],
        [asked("Größe? 漢字 <img> 🙂", small)],
        [asked("count from one to ten")],
    ]


def compare(url: str, key: str, checkpoint: pathlib.Path, side: int) -> dict[str, Any]:
    """Greedy answers to all conversations, streamed and whole, and sampled ones by seed, many at a time; then the same
    questions to the library one by one.
    """
    talks = conversations(side)
    wanted: list[tuple[int, dict[str, Any]]] = [(talk, {"temperature": 0}) for talk in range(len(talks))]
    wanted += [(talk, {"temperature": 1, "seed": seed}) for talk in range(len(talks)) for seed in SEEDS]
    address = Address.of(url, key)

    async def one(talk: int, sampling: dict[str, Any], stream: bool) -> tuple[str, str]:
        body = {"messages": talks[talk], "stream": stream, **ASKED, **sampling}
        heard = await ask(address, json.dumps(body).encode(), 300)
        return (heard.thoughts[0], heard.texts[0]) if heard.whole else ("", f"({heard.status} {heard.error})")

    async def every(stream: bool) -> list[tuple[str, str]]:
        return await asyncio.gather(*(one(talk, sampling, stream) for talk, sampling in wanted))

    served = {stream: asyncio.run(every(stream)) for stream in (False, True)}
    ours = "format" in json.loads((checkpoint / "config.json").read_text())
    model, processor = (ivl.load if ours else load_released)(checkpoint, "float32")
    faults, alike = [], {"greedy": 0, "sampled": 0}
    for number, (talk, sampling) in enumerate(wanted):
        text = split_thinking(ivl.chat(model, processor, talks[talk], thinking=True, **ASKED, **sampling))
        for stream, texts in served.items():
            if texts[number] == text:
                alike["sampled" if "seed" in sampling else "greedy"] += 1
            else:
                faults.append([f"conversation {talk}, {sampling}, stream {stream}", f"{texts[number]!r}, not {text!r}"])
    return {"answers": 2 * len(wanted), **alike, "faults": faults}
