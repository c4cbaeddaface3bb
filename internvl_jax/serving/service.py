"""A request from its order to its answers: admission, prompt, engine. No HTTP here."""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import msgspec
import numpy as np

from internvl_jax.data import ThinkingSwitch
from internvl_jax.errors import InputError
from internvl_jax.inference import MODEL_THRESHOLDS, Piece, Request, SamplingParams, Seen
from internvl_jax.serving.admission import Admission, Ticket
from internvl_jax.serving.dvd import VisionBusy, VisionClient, VisionUnavailable
from internvl_jax.serving.engine_thread import Answers, EngineFailed, EngineThread
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.metrics import ApiMetrics
from internvl_jax.serving.orders import Order
from internvl_jax.serving.refusals import Refusal
from internvl_jax.serving.replies import ChoiceText, SaidNow, Usage
from internvl_jax.serving.structured import Allow, Grammars

# A line of JSON for every request that came as far as the engine: how much and how long, and nothing of what was said.
_log = logging.getLogger("internvl_jax.serving")
requests_log = logging.getLogger("internvl_jax.requests")

T = TypeVar("T")

_ALIVE_SECONDS = 10.0  # a stream says that it lives after so long without a word, or proxies would cut it


@dataclasses.dataclass(frozen=True)
class ReadyPrompt:
    """A prompt that is ready for the model.

    Attributes:
      tokens_T: int32, with as many image tokens as all tiles have at full resolution.
      tiles_GHWC: uint8.
      begun: how the answer begins; None where thinking and answer aren't told apart.
      sizes: (width, height) in pixels of every picture, and the grid (columns, rows) of its tiles.
      thinking: whether the answer begins with it; see `data.PromptSettings`.
    """

    tokens_T: np.ndarray
    tiles_GHWC: np.ndarray
    begun: str | None
    sizes: tuple[tuple[int, int, int, int], ...] = ()
    thinking: ThinkingSwitch = "off"


class Writing:
    """Answers to a request as they are written; to be closed, whatever happens.

    Attributes:
      choices: the answers so far.
      usage: what the prompt took.
      seen: what the model read; None before the first token.
      moved: when it came, or something of its request was last begun or written: how long it may wait counts from then.
    """

    def __init__(
        self,
        service: "Service",
        order: Order,
        prompt: ReadyPrompt,
        answers: Answers,
        ticket: Ticket,
        allow: Allow | None,
    ):
        self._service, self._answers, self._ticket, self._allow = service, answers, ticket, allow
        self.order, self.prompt = order, prompt
        self.choices = [ChoiceText(prompt.begun) for _ in order.seeds]
        self.usage = Usage()
        self.seen: Seen | None = None
        self.moved = ticket.since
        self._whole = self._closed = False

    async def said(self) -> AsyncIterator[list[tuple[int, SaidNow]]]:
        """What was added, (number of the answer, what), until all have ended; [] every now and then while nothing is.

        Raises:
          Refusal: 408 or 500.
        """
        metrics, begun, last = self._service.metrics, self._ticket.since, 0.0
        while True:
            left = min(self._end - time.monotonic(), _ALIVE_SECONDS)
            try:
                found = await asyncio.wait_for(self._answers.take(), max(left, 0))
            except TimeoutError:
                if time.monotonic() >= self._end:
                    word, since = ("ended", begun) if self._answers.began else ("begun", self.moved)
                    raise _late(word, self._end - since) from None
                yield []
                continue
            except EngineFailed as error:
                raise Refusal(500, f"{error}; start the server again.", code="engine_failed") from None
            if not found:
                break
            if self._allow is not None and self._allow.failed is not None:
                message = f"the answer could not be kept to its shape ({self._allow.failed}); ask for a simpler one."
                raise Refusal(500, message, code="structured_output_failed")
            now = time.monotonic()
            if not last:
                self._ticket.hand_back()
                metrics.first.observe(now - begun)
            else:
                metrics.between.observe((now - last) * len({piece.number for piece in found}) / len(found))
            last = now
            pieces: dict[int, list[Piece]] = {}
            for piece in found:
                self.usage.note(piece.token, self._service.image_token_id)
                self.seen = piece.token.seen
                pieces.setdefault(piece.number, []).append(piece)
            yield [(number, self.choices[number].read(own)) for number, own in pieces.items()]
        self._whole = True

    def _log(self, usage: Usage) -> None:
        answers, ends = self._answers, [choice.end for choice in self.choices]
        line = {
            "id": self.order.name,
            "time": round(time.time(), 3),
            "ends": ends if self._whole else [end or "aborted" for end in ends],
            "prompt": usage.prompt,
            "image": usage.image,
            "cached": usage.cached,
            "completion": usage.completion,
            "first_seconds": round(answers.began - self._ticket.since, 4) if answers.began else None,
            "seconds": round(time.monotonic() - self._ticket.since, 4),
        }
        requests_log.info(msgspec.json.encode(line).decode())

    @property
    def _end(self) -> float:
        """When it has taken too long."""
        limits = self._service.limits
        return self._ticket.since + limits.total_seconds if self._answers.began else self.moved + limits.first_seconds

    @property
    def used(self) -> Usage:
        """What the request took so far."""
        return self.usage.count(self.choices)

    def close(self) -> None:
        """Ends what is not written; rows are free at the next step. May be called again."""
        metrics, answers = self._service.metrics, self._answers
        if self._closed:
            return
        self._closed = True
        self._service.writing -= 1
        self._ticket.hand_back()
        if not self._whole:
            self._service.engine.drop(answers)
            metrics.aborted.inc()
        usage = self.used
        metrics.prompt_tokens.inc(usage.prompt)
        metrics.queried_tokens.inc(usage.prompt)
        metrics.cached_tokens.inc(usage.cached)
        metrics.image_tokens.inc(usage.image)
        metrics.generation_tokens.inc(usage.completion)
        self._log(usage)
        if self._whole:
            metrics.whole.observe(answers.ended - self._ticket.since)
            metrics.decoded.observe(answers.ended - answers.began)
            metrics.queued.observe(answers.seated - answers.asked)
            metrics.read.observe(answers.began - answers.seated)
            if (written := max(choice.tokens for choice in self.choices)) > 1:
                metrics.paced.observe((answers.ended - answers.began) / (written - 1))
            metrics.prompt_size.observe(usage.prompt)
            for choice in self.choices:
                metrics.answer_size.observe(choice.tokens)
                metrics.success.labels(choice.end).inc()


@dataclasses.dataclass
class Service:
    """A model that answers.

    Attributes:
      engine: the thread of its engine.
      limits: what it takes.
      metrics: what it counts.
      admission: who waits.
      grammars: of answers that must look like something.
      vision: gives features of tiles; None: the model has a tower of its own.
      image_token_id: the id of <IMG_CONTEXT>.
      context: tokens that a prompt and its answer may have together.
      writing: requests that were let in and have not ended.
    """

    engine: EngineThread
    limits: Limits
    metrics: ApiMetrics
    admission: Admission
    grammars: Grammars
    vision: VisionClient | None
    image_token_id: int
    context: int
    writing: int = 0

    async def begin(self, order: Order, prompted: Callable[[], Awaitable[ReadyPrompt]]) -> Writing:
        """Makes the prompt and hands it to the engine.

        Raises:
          Refusal: what can't be answered, or not now.
        """
        with self._entered() as (ticket, leave):
            began = time.monotonic()
            async with _at_most(self.limits.first_seconds):
                prompt = await prompted()
                self.metrics.prepared.observe(time.monotonic() - began)
                ticket.weigh(len(prompt.tokens_T))
                answers, allow = await self._submit(order, prompt)
            leave.pop_all()
        return Writing(self, order, prompt, answers, ticket, allow)

    async def beside(self, work: Callable[[], Awaitable[T]]) -> T:
        """What is done without the engine, by one of those that wait.

        Raises:
          Refusal: as in `begin`.
        """
        with self._entered():
            async with _at_most(self.limits.first_seconds):
                return await work()

    @contextlib.contextmanager
    def _entered(self) -> Iterator[tuple[Ticket, contextlib.ExitStack]]:
        """One more that waits; what is left of it at the end, unless that is taken over."""
        with contextlib.ExitStack() as leave:
            ticket = self.admission.ticket()
            leave.callback(ticket.hand_back)
            self.writing += 1
            leave.callback(self._ended)
            try:
                yield ticket, leave
            except EngineFailed as error:
                raise Refusal(500, f"{error}; start the server again.", code="engine_failed") from None
            except InputError as error:
                raise Refusal(400, f"{error}.") from None

    def _ended(self) -> None:
        self.writing -= 1

    async def _submit(self, order: Order, prompt: ReadyPrompt) -> tuple[Answers, Allow | None]:
        sampling = self._bounded(order, len(prompt.tokens_T))
        tiles_GHWC, thresholds = prompt.tiles_GHWC, order.thresholds
        allow: Allow | None = None
        if order.shape is not None:
            if order.sampling.min_tokens:
                raise Refusal(
                    400, "an answer of a wanted shape ends where it must; leave out min_tokens.", "min_tokens"
                )
            grammar = await asyncio.to_thread(self.grammars.compile, *order.shape, prompt.thinking)
            allow = grammar.allow(len(order.seeds))
        features = None
        if self.vision is not None and len(tiles_GHWC):
            began = time.monotonic()
            try:
                features = await self.vision.features(tiles_GHWC, thresholds)
            except VisionBusy as error:
                raise self.admission.full(str(error)) from None
            except VisionUnavailable as error:
                _log.warning("a request's pictures can't be read: %s", error)  # with addresses, which are no client's
                message = "pictures can't be read now, text alone is answered; ask again later."
                raise Refusal(503, message, code="vision_unavailable", headers={"Retry-After": "5"}) from None
            self.metrics.looked.observe(time.monotonic() - began)
            tiles_GHWC, thresholds = tiles_GHWC[:0], MODEL_THRESHOLDS
        wanted = prompt.tokens_T, tiles_GHWC, sampling, thresholds, order.seeds, allow, order.priority, features
        return await self.engine.submit(Request(*wanted, order.adapter), prompt.begun or ""), allow

    def _bounded(self, order: Order, prompt: int) -> SamplingParams:
        """The request's own bound of its answer, or this server's."""
        room = self.context - prompt + 1
        if room < (order.max_tokens or 1):
            asked = "" if order.max_tokens is None else f" and up to {order.max_tokens} of the answer"
            raise Refusal(
                400,
                f"the prompt has {prompt} tokens{asked}, more than the {self.context} that this server holds; shorten "
                "the conversation, show smaller pictures or lower max_tokens.",
                "messages",
                "context_length_exceeded",
            )
        longest = order.max_tokens or max(min(self.limits.default_tokens, room), order.sampling.min_tokens)
        return dataclasses.replace(order.sampling, max_new_tokens=longest)


@contextlib.asynccontextmanager
async def _at_most(seconds: float) -> AsyncIterator[None]:
    """Refuses what takes longer: it may wait for a worker, a vision server or another host."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise _late("begun", seconds) from None


def _late(word: str, seconds: float) -> Refusal:
    return Refusal(408, f"the answer had not {word} after {seconds:.0f} s; ask again later.", code="timeout")
