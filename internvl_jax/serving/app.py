"""The HTTP side: OpenAI's endpoints, and what an operator asks of a server."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteException

from internvl_jax.serving.bodies import CheckedRoute
from internvl_jax.serving.door import Door, Doors, Message
from internvl_jax.serving.endpoints import Endpoints
from internvl_jax.serving.metrics import ApiMetrics
from internvl_jax.serving.refusals import Refusal
from internvl_jax.serving.refusing import Refusing
from internvl_jax.serving.schema import ErrorBody, explained

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in (
        (400, "The request can't be answered"),
        (401, "No key, or a wrong one"),
        (403, "A host that this server doesn't go by"),
        (404, "No such model"),
        (408, "It took too long"),
        (413, "The body is too large, or has too many values"),
        (429, "Too many wait; Retry-After says when to come again"),
        (500, "The engine is broken"),
        (503, "The server is starting or stopping, or has no vision server"),
    )
}


_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answers; events as they are written, where `stream` is true",
        "content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}},
    }
}


def make_app(endpoints: Endpoints, metrics: ApiMetrics, doors: Doors, refusing: Refusing) -> Door:
    """The application.

    Args:
      endpoints: what is answered.
      metrics: where refusals are counted.
      doors: who may come in.
      refusing: says no.
    """
    app = FastAPI(title="internvl_jax", docs_url=None, redoc_url=None, redirect_slashes=False, responses=_ERRORS)
    app.router.route_class = CheckedRoute
    app.post("/v1/chat/completions", responses=_STREAMED)(endpoints.chat)
    app.post("/v1/completions", responses=_STREAMED)(endpoints.complete)
    app.post("/tokenize")(endpoints.tokenize)
    app.post("/detokenize")(endpoints.detokenize)
    app.get("/v1/models")(endpoints.models)
    app.get("/v1/models/{name:path}")(endpoints.model)
    for path, endpoint, kind in (
        ("/health", endpoints.health, JSONResponse),
        ("/ready", endpoints.ready, JSONResponse),
        ("/metrics", endpoints.metrics, PlainTextResponse),
    ):
        app.get(path, response_class=kind)(endpoint)
        app.head(path, include_in_schema=False)(endpoint)
    app.get("/", include_in_schema=False)(endpoints.root)

    refusing.paths = {route.path for route in app.routes if isinstance(route, APIRoute)}

    def refuse(scope: Message, refusal: Refusal) -> Response:
        metrics.refused.labels(str(refusal.status)).inc()
        if refusal.status == 429:
            metrics.rejected.inc()
        return refusing.answer(scope, refusal)

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return refuse(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refuse(request.scope, explained(error.errors()))

    @app.exception_handler(StarletteException)
    async def failed(request: Request, error: StarletteException) -> Response:
        code = "server_busy" if error.status_code == 429 else None
        headers = dict(error.headers or {})
        return refuse(request.scope, Refusal(error.status_code, str(error.detail), code=code, headers=headers))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return refuse(request.scope, Refusal(500, "the server made a mistake; its log has more."))

    return Door(app, doors, refuse)
