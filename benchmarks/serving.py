"""Load on a server as its users make it: questions about pictures that come when they come, and what they wait for."""

import asyncio
import base64
import collections
import dataclasses
import io
import json
import os
import re
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.http_client import Address, Heard, ask, fetch
from benchmarks.served_process import serving
from internvl_jax.errors import InputError

_AHEAD = 64  # bodies that are made before they are sent
_WORDS = (
    "what",
    "where",
    "which",
    "how many",
    "big",
    "small",
    "red",
    "green",
    "blue",
    "left of",
    "above",
    "near",
    "the",
)


@dataclasses.dataclass(frozen=True)
class OfferedLoad:
    """What is asked, and when.

    Attributes:
      rate: requests a second on average, at random times (a Poisson process); None: as `concurrency` says.
      concurrency: how many are under way, the next one sent when one has ended; with a rate, unused.
      seconds: for how long requests are sent that count; those under way are waited for.
      warm: for how long before that others are.
      pictures: (width, height) in pixels of the pictures of a request, each request with those of one entry, in turn.
      pool: how many different pictures there are of each size; 0: every picture is another one.
      words: of a question, from and to.
      tokens: of an answer, from and to, whatever the model would say.
      stream: whether answers come piece by piece.
      limit: seconds after which a request is given up.
      seed: of arrivals, lengths, words and pictures.
    """

    rate: float | None = None
    concurrency: int = 1
    seconds: float = 30.0
    warm: float = 0.0
    pictures: tuple[tuple[tuple[int, int], ...], ...] = ((),)
    pool: int = 0
    words: tuple[int, int] = (8, 32)
    tokens: tuple[int, int] = (32, 32)
    stream: bool = True
    limit: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rate is None and self.concurrency < 1:
            raise InputError("give either a rate or how many requests are under way")
        for name in ("words", "tokens"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise InputError(f"{name} are from {low} to {high}; give 1 or more, the smaller one first")


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a user is content with.

    Attributes:
      first: seconds to the first token, at most.
      between: seconds from token to token, on average over an answer, at most.
    """

    first: float = 1.0
    between: float = 0.1


class Bodies:
    """Bodies of requests, each another one.

    Args:
      traffic: what they are of.
      model: the name that is asked for.
    """

    def __init__(self, traffic: OfferedLoad, model: str):
        self._traffic, self._model = traffic, model
        self._random, self._count = np.random.default_rng(traffic.seed), 0
        self._pools: dict[tuple[int, int], list[str]] = collections.defaultdict(list)

    def make(self) -> tuple[bytes, int]:
        """The next one, and how many tokens its answer must have."""
        traffic, random = self._traffic, self._random
        sizes = traffic.pictures[self._count % len(traffic.pictures)]
        self._count += 1
        question = " ".join(random.choice(_WORDS, random.integers(traffic.words[0], traffic.words[1] + 1)))
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": self._picture(size)}} for size in sizes
        ]
        tokens = int(random.integers(traffic.tokens[0], traffic.tokens[1] + 1))
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
            "max_completion_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": traffic.stream,
        }
        if traffic.stream:
            body["stream_options"] = {"include_usage": True}
        return json.dumps(body).encode(), tokens

    def _picture(self, size: tuple[int, int]) -> str:
        pool = self._pools[size]
        if self._traffic.pool and len(pool) == self._traffic.pool:
            return pool[int(self._random.integers(len(pool)))]
        pool.append(picture(self._random, size))
        return pool[-1] if self._traffic.pool else pool.pop()


def picture(random: np.random.Generator, size: tuple[int, int]) -> str:
    """A data URL of a JPEG of smooth colours, of (width, height) pixels."""
    coarse = Image.fromarray(random.integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    coarse.save(stream, "jpeg", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def measured(url: str, traffic: OfferedLoad, goal: Goal) -> dict[str, Any]:
    """Loads a server that runs; a key that it wants stands in $INTERNVL_API_KEY. See `measure`."""
    return asyncio.run(measure(Address.of(url, os.environ.get("INTERNVL_API_KEY", "")), traffic, goal))


def measured_of(
    checkpoint: str, flags: Sequence[str], vision_servers: int, traffic: OfferedLoad, goal: Goal
) -> dict[str, Any]:
    """Loads a server that is started for it, see `served_process.serving`.

    Returns:
      see `measure`, with the memory that each process and those below it hold in the end.
    """
    with serving(checkpoint, flags, vision_servers) as processes:
        found = measured(processes["server"].url, traffic, goal)
        memory = {name: sum(process.memory().values()) >> 20 for name, process in processes.items()}
    return found | {"memory_mb": memory}


def sizes_of(texts: Sequence[str]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Pictures of requests in turn, of WxH, WxH+WxH, or none.

    Raises:
      InputError: it says something else.
    """
    return tuple(() if text == "none" else tuple(map(_size, text.split("+"))) for text in texts)


def _size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", text):
        raise InputError(f"{text!r} is no size of a picture; give it as 448x448, or none")
    width, _, height = text.partition("x")
    return int(width), int(height)


def range_of(text: str, name: str) -> tuple[int, int]:
    """From and to, of 32 or 16-64.

    Raises:
      InputError: it says something else.
    """
    if not re.fullmatch(r"\d{1,7}(-\d{1,7})?", text):
        raise InputError(f"--{name}={text} is no number and no range; give it as 32 or 16-64")
    low, _, high = text.partition("-")
    return int(low), int(high or low)


async def measure(address: Address, traffic: OfferedLoad, goal: Goal) -> dict[str, Any]:
    """Loads a server.

    Returns:
      a report, see `report`, with what the client itself took: seconds of its processor in a second, and how late
      requests were sent at the worst percent.

    Raises:
      InputError: nobody answers, or not as a server that is ready.
    """
    bodies = Bodies(traffic, await _model(address))
    ready: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue(_AHEAD)

    async def fill() -> None:
        while True:
            await ready.put(await asyncio.to_thread(bodies.make))

    filling = asyncio.create_task(fill())
    try:
        if traffic.warm:
            await _load(address, dataclasses.replace(traffic, seconds=traffic.warm), ready)
        while not ready.full() and not filling.done():
            await asyncio.sleep(0.01)
        used, began = time.process_time(), time.perf_counter()
        heard, late = await _load(address, traffic, ready)
        seconds, used = time.perf_counter() - began, time.process_time() - used
    finally:
        filling.cancel()
    client = {"cpu": round(used / seconds, 3), "late_p99_s": quantile(late, 99)}
    return report(heard, seconds, goal) | {"client": client}


async def _load(
    address: Address, traffic: OfferedLoad, ready: asyncio.Queue[tuple[bytes, int]]
) -> tuple[list[tuple[Heard, int]], list[float]]:
    """What came of every request, and by how many seconds those of a given rate were late."""
    heard: list[tuple[Heard, int]] = []
    late: list[float] = []
    began = time.perf_counter()

    async def one(body: bytes, tokens: int) -> None:
        heard.append((await ask(address, body, traffic.limit), tokens))

    async def one_after_another() -> None:
        while time.perf_counter() < began + traffic.seconds:
            await one(*await ready.get())

    async with asyncio.TaskGroup() as group:
        if traffic.rate is None:
            for _ in range(traffic.concurrency):
                group.create_task(one_after_another())
        else:
            async for due in arrivals(traffic, began):
                wanted = await ready.get()
                late.append(time.perf_counter() - due)
                group.create_task(one(*wanted))
    return heard, late


async def arrivals(traffic: OfferedLoad, began: float) -> AsyncIterator[float]:
    """Waits for each of the moments at which a request is due."""
    random = np.random.default_rng((traffic.seed, 1))
    due = began + random.exponential(1 / traffic.rate)
    while due < began + traffic.seconds:
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        yield due
        due += random.exponential(1 / traffic.rate)


def report(heard: Sequence[tuple[Heard, int]], seconds: float, goal: Goal) -> dict[str, Any]:
    """What users had.

    Args:
      heard: what came of every request, and how many tokens its answer had to have.
      seconds: from the first request to the last answer's end.

    Returns:
      counts, rates a second, and percentiles in seconds: `first_s` from sending to the first words, `token_s` from
      token to token averaged over an answer, `gap_s` between two pieces of an answer, which may be of several tokens,
      `whole_s` to the end. `goodput` counts requests within the goal.
    """
    whole = [each for each, _ in heard if each.whole]
    first = [each.pieces[0] - each.sent for each in whole if each.pieces]
    between = [_between(each) for each in whole]
    gaps = [after - before for each in whole for before, after in zip(each.pieces, each.pieces[1:])]
    good = sum(
        bool(each.pieces) and each.pieces[0] - each.sent <= goal.first and pause <= goal.between
        for each, pause in zip(whole, between)
    )
    used = [each.usage for each in whole]
    completion, prompt, cached = (sum(map(count, used)) for count in (_completion, _prompt, _cached))
    refused = collections.Counter(f"{each.status} {each.error}"[:80] for each, _ in heard if not each.whole)
    return {
        "requests": len(heard),
        "answered": len(whole),
        "not_answered": dict(refused),
        "wrong_lengths": sum(each.whole and _completion(each.usage) != tokens for each, tokens in heard),
        "seconds": round(seconds, 2),
        "requests_per_s": round(len(whole) / seconds, 3),
        "tokens_per_s": round(completion / seconds, 2),
        "prompt_tokens_mean": round(prompt / len(whole), 1) if whole else None,
        "prompt_cached_share": round(cached / prompt, 3) if prompt else None,
        "first_s": _quantiles(first),
        "token_s": _quantiles(between),
        "gap_s": _quantiles(gaps),
        "whole_s": _quantiles([each.ended - each.sent for each in whole]),
        "goodput_per_s": round(good / seconds, 3),
        "goodput_share": round(good / len(heard), 3) if heard else None,
    }


def quantile(values: Sequence[float], percent: int) -> float | None:
    """The value that `percent` of 100 don't exceed; None without any."""
    if len(values) < 2:
        return round(values[0], 5) if values else None
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 5)


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    return {f"p{percent}": quantile(values, percent) for percent in (50, 90, 99)}


def _between(heard: Heard) -> float:
    """Seconds from token to token, on average over an answer; the first piece counts as one token."""
    tokens = _completion(heard.usage)
    return (heard.pieces[-1] - heard.pieces[0]) / (tokens - 1) if tokens > 1 and heard.pieces else 0.0


def _completion(usage: dict[str, Any]) -> int:
    return int(usage.get("completion_tokens", 0))


def _prompt(usage: dict[str, Any]) -> int:
    return int(usage.get("prompt_tokens", 0))


def _cached(usage: dict[str, Any]) -> int:
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0))


async def _model(address: Address) -> str:
    try:
        status, body = await fetch(address, "/v1/models")
    except (OSError, EOFError) as error:
        raise InputError(f"no server answers at {address.host}:{address.port}: {error}") from None
    if status != 200:
        raise InputError(f"the server at {address.host}:{address.port} answers {status}: {body[:200].decode()}")
    return str(json.loads(body)["data"][0]["id"])
