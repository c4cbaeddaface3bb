"""What a server answers to, endpoint by endpoint."""

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from internvl_jax.data import Tokenizer
from internvl_jax.serving import orders
from internvl_jax.serving.door import Doors
from internvl_jax.serving.orders import Order
from internvl_jax.serving.page_source import page
from internvl_jax.serving.prompting import Prompting
from internvl_jax.serving.refusals import Refusal
from internvl_jax.serving.replies import ChatReply, TextReply, most_agreed
from internvl_jax.serving.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from internvl_jax.serving.service import Service, Writing
from internvl_jax.serving.writings import Asked, Writings

T = TypeVar("T")


class Endpoints:
    """Answers requests that were let in and read.

    Args:
      service: what answers.
      prompting: what makes prompts.
      names: what the model is called; the first is told.
      fingerprint: of the model's config and dtype, and of how pictures become tiles.
      doors: whether anybody is let in.
      adapters: what it is called with each of the adapters that there are now.
    """

    def __init__(
        self,
        service: Service,
        prompting: Prompting,
        names: tuple[str, ...],
        fingerprint: str,
        doors: Doors,
        adapters: Callable[[], tuple[str, ...]],
    ):
        self._service, self._prompting, self._doors, self._adapters = service, prompting, doors, adapters
        self._names, self._fingerprint, self._began = names, fingerprint, int(time.time())
        self._html, self._policy = page()

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """POST /v1/chat/completions."""
        order = self._adapted(orders.chat_order(body, self._service.limits), body.model)
        reply = ChatReply(*self._spoken_as(order, body.model))
        return await self._answer(request, reply, (order, lambda: self._prompting.chat(body.messages, order)))

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """POST /v1/completions."""
        made = orders.completion_orders(body, self._service.limits)
        asked = [(self._adapted(order, body.model), prompt) for order, prompt in made]
        reply = TextReply(*self._spoken_as(asked[0][0], body.model))
        return await self._answer(
            request,
            reply,
            *((order, functools.partial(self._prompting.text, prompt)) for order, prompt in asked),
        )

    async def tokenize(self, body: TokenizeRequest, request: Request) -> Response:
        """POST /tokenize."""
        self._check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise Refusal(400, "give either prompt or messages.", "prompt")
        prompting = self._prompting
        prompted = (
            functools.partial(prompting.text, body.prompt)
            if body.messages is None
            else functools.partial(prompting.conversation, body.messages, body.max_dynamic_patch)
        )
        tokens = (await _unless_gone(request, self._service.beside(prompted))).tokens_T.tolist()
        return as_json({"count": len(tokens), "max_model_len": self._service.context, "tokens": tokens})

    async def detokenize(self, body: DetokenizeRequest, request: Request) -> Response:
        """POST /detokenize."""
        self._check_model(body.model)
        decoded = functools.partial(self._prompting.decoded, body.tokens)
        return as_json({"prompt": await _unless_gone(request, self._service.beside(decoded))})

    async def models(self) -> Response:
        """GET /v1/models."""
        return as_json({"object": "list", "data": [*map(self._described, (*self._names, *self._adapters()))]})

    async def model(self, name: str) -> Response:
        """GET /v1/models/NAME."""
        return as_json(self._described(self._check_model(name)))

    async def health(self) -> Response:
        """GET /health: whether the server does what it is for."""
        return as_json(self._doors.state(), 200 if self._doors.healthy else 503)

    async def ready(self) -> Response:
        """GET /ready: whether requests are answered."""
        return as_json(self._doors.state(), 200 if self._doors.open else 503)

    async def metrics(self) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def root(self) -> Response:
        """GET /: the page."""
        headers = {"Content-Security-Policy": self._policy, "Cache-Control": "no-cache"}
        return Response(self._html, media_type="text/html; charset=utf-8", headers=headers)

    async def _answer(self, request: Request, reply: ChatReply, *asked: Asked) -> Response:
        writing = await _unless_gone(request, Writings.begin(self._service, asked))
        if writing.first.order.stream:
            return _Stream(_events(writing, reply, self._prompting.told), writing)
        try:
            await _unless_gone(request, _all_of(writing))
        finally:
            writing.close()
        choices, told = writing.choices, writing.first.order.told
        if told is not None:
            choices = await asyncio.to_thread(most_agreed, choices, told)
        return as_json(reply.whole(choices, writing.used) | self._prompting.told(writing.first))

    def _spoken_as(self, order: Order, model: str | None) -> tuple[str, str, str, Tokenizer, bool, bool]:
        name = self._check_model(model)
        return order.name, name, self._fingerprint, self._prompting.tokenizer, order.logprobs, order.reasoning

    def _adapted(self, order: Order, model: str | None) -> Order:
        return dataclasses.replace(order, adapter=model if model in self._adapters() else None)

    def _check_model(self, model: str | None) -> str:
        if model is not None and model not in (*self._names, *self._adapters()):
            message = f"there is no model {model[:100]!r} here; it is {self._names[0]!r}."
            raise Refusal(404, message, "model", "model_not_found")
        return model or self._names[0]

    def _described(self, name: str) -> dict[str, Any]:
        owner = {"owned_by": "internvl_jax", "max_model_len": self._service.context}
        base = {} if name in self._names else {"parent": self._names[0]}
        return {"id": name, "object": "model", "created": self._began, **owner, **base}


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of JSON."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


class _Stream(StreamingResponse):
    """A stream of events that ends its answers with itself, also where the client left before the first."""

    def __init__(self, events: AsyncIterator[bytes], writing: Writings):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._writing = writing

    async def __call__(self, *asgi: Any) -> None:
        try:
            await super().__call__(*asgi)
        finally:
            self._writing.close()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives, unless the client goes away before: then it is broken off."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(499, "the client went away")
        return await task
    finally:
        watch.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch


async def _all_of(writing: Writings) -> None:
    async for _ in writing.said():
        pass


async def _events(
    writing: Writings, reply: ChatReply, told: Callable[[Writing], dict[str, Any]]
) -> AsyncIterator[bytes]:
    """Server-sent events of answers as they are written."""
    usage = writing.first.order.usage

    def event(chunk: dict[str, Any] | None) -> bytes:
        if chunk is None:
            return b""
        if usage != "none" and "usage" not in chunk:
            chunk = chunk | {"usage": writing.used.values() if usage == "each" else None}
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    opened: set[int] = set()
    try:
        async for said in writing.said():
            if not said:
                yield b": keep-alive\n\n"
            for number, each in said:
                if number not in opened:
                    opened.add(number)
                    yield event(reply.opening(number))
                yield event(reply.piece(number, each))
        if usage != "none":
            yield event(reply.closing(writing.used) | told(writing.first))
    except Refusal as refusal:
        yield b"data: " + msgspec.json.encode(refusal.body()) + b"\n\n"
    yield b"data: [DONE]\n\n"
