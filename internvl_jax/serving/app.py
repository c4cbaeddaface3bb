"""The HTTP side: OpenAI's endpoints, and what an operator asks of a server."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteException

from internvl_jax.errors import InputError
from internvl_jax.serving import orders
from internvl_jax.serving.door import Door, Doors
from internvl_jax.serving.orders import Order
from internvl_jax.serving.page_source import page
from internvl_jax.serving.prompting import Prompting
from internvl_jax.serving.refusals import Refusal
from internvl_jax.serving.replies import ChatReply, TextReply
from internvl_jax.serving.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ErrorBody,
    TokenizeRequest,
    explained,
)
from internvl_jax.serving.service import Prompt, Service, Writing
from internvl_jax.validation import parse_json

_CLIENTS_OWN = ("schema", "json", "metadata")
T = TypeVar("T")

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in (
        (400, "The request can't be answered"),
        (401, "No key, or a wrong one"),
        (403, "A host that this server doesn't go by"),
        (404, "No such model"),
        (408, "It took too long"),
        (413, "The body is too large"),
        (429, "Too many wait; Retry-After says when to come again"),
        (500, "The engine is broken"),
        (503, "The server is starting or stopping, or has no vision server"),
    )
}


class _CheckedRequest(Request):
    """A request whose body is read once, by the project's own reader."""

    async def json(self) -> Any:
        try:
            value = parse_json(await self.body(), "the body")
        except InputError as error:
            raise HTTPException(400, str(error)) from None
        return _without_null(value)


def _without_null(value: Any) -> Any:
    """null stands for a field that isn't there, but in what belongs to the client."""
    if isinstance(value, list):
        return [_without_null(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: each if name in _CLIENTS_OWN else _without_null(each) for name, each in value.items() if each is not None
    }


class _Checked(APIRoute):
    def get_route_handler(self) -> Any:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            return await handle(_CheckedRequest(request.scope, request.receive))

        return checked


class _Stream(StreamingResponse):
    """A stream of events that ends its answers with itself, also where the client left before the first."""

    def __init__(self, events: AsyncIterator[bytes], writing: Writing):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._writing = writing

    async def __call__(self, *asgi: Any) -> None:
        try:
            await super().__call__(*asgi)
        finally:
            self._writing.close()


def make_app(service: Service, prompting: Prompting, names: tuple[str, ...], fingerprint: str, doors: Doors) -> Any:
    """The application.

    Args:
      service: what answers.
      prompting: what makes prompts.
      names: what the model is called; the first is told.
      fingerprint: of the model's config and dtype, and of how pictures become tiles.
      doors: who may come in, and whether anybody may yet.
    """
    app = FastAPI(title="internvl_jax", docs_url=None, redoc_url=None, responses=_ERRORS)
    app.router.route_class = _Checked
    began = int(time.time())
    html, policy = page()

    def check_model(model: str | None) -> str:
        if model is not None and model not in names:
            message = f"there is no model {model[:100]!r} here; it is {names[0]!r}."
            raise Refusal(404, message, "model", "model_not_found")
        return model or names[0]

    async def answer(request: Request, order: Order, reply: ChatReply, prompted: Any) -> Response:
        writing = await _unless_gone(request, service.begin(order, prompted))
        if order.stream:
            return _Stream(_events(writing, reply, prompting.told), writing)
        try:
            await _unless_gone(request, _all_of(writing))
        finally:
            writing.close()
        whole = reply.whole(writing.choices, writing.used)
        return _json(whole | prompting.told(writing))

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        order = orders.chat_order(body, service.limits)
        parts = check_model(body.model), fingerprint, prompting.tokenizer
        reply = ChatReply(order.name, *parts, order.logprobs, order.reasoning)
        return await answer(request, order, reply, lambda: prompting.chat(body.messages, order))

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        order = orders.completion_order(body, service.limits)
        parts = check_model(body.model), fingerprint, prompting.tokenizer
        reply = TextReply(order.name, *parts, order.logprobs, order.reasoning)
        return await answer(request, order, reply, lambda: prompting.text(body.prompt))

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise Refusal(400, "give either prompt or messages.", "prompt")
        if body.messages is None:
            prompt: Prompt = await prompting.text(body.prompt)
        else:
            prompt = await prompting.conversation(body.messages, body.max_dynamic_patch)
        tokens = prompt.tokens_T.tolist()
        return _json({"count": len(tokens), "max_model_len": service.context, "tokens": tokens})

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        check_model(body.model)
        return _json({"prompt": prompting.tokenizer.decode(body.tokens, skip_special=False)})

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [described(name) for name in names]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return _json(described(check_model(name)))

    def described(name: str) -> dict[str, Any]:
        owner = {"owned_by": "internvl_jax", "max_model_len": service.context}
        return {"id": name, "object": "model", "created": began, **owner}

    @app.get("/health")
    @app.head("/health", include_in_schema=False)
    async def health() -> Response:
        return _json(doors.state(), 200 if doors.healthy else 503)

    @app.get("/ready")
    @app.head("/ready", include_in_schema=False)
    async def ready() -> Response:
        return _json(doors.state(), 200 if doors.open else 503)

    @app.get("/metrics")
    @app.head("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": policy})

    def refuse(refusal: Refusal) -> Response:
        service.metrics.refused.labels(str(refusal.status)).inc()
        if refusal.status == 429:
            service.metrics.rejected.inc()
        return _json(refusal.body(), refusal.status, refusal.headers)

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return refuse(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refuse(explained(error.errors()))

    @app.exception_handler(StarletteException)
    async def failed(request: Request, error: StarletteException) -> Response:
        return refuse(Refusal(error.status_code, str(error.detail), headers=dict(error.headers or {})))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return refuse(Refusal(500, "the server made a mistake; its log has more."))

    return Door(app, doors, refuse)


class _ClientGone(Exception):
    """Nobody waits for the answer."""


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives, unless the client goes away before: then it is broken off."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise StarletteException(499, "the client went away")
        return await task
    finally:
        watch.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch


async def _all_of(writing: Writing) -> None:
    async for _ in writing.said():
        pass


async def _events(
    writing: Writing, reply: ChatReply, told: Callable[[Writing], dict[str, Any]]
) -> AsyncIterator[bytes]:
    """Server-sent events of answers as they are written."""
    usage = writing.order.usage

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
            yield event(reply.closing(writing.used) | told(writing))
    except Refusal as refusal:
        yield b"data: " + msgspec.json.encode(refusal.body()) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")
