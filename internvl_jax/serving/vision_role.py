"""The vision half of a model becomes a server."""

import contextlib
import socket
import threading
from collections.abc import Callable

import jax
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from internvl_jax.data import Processor
from internvl_jax.inference import VisionTower, fingerprint, weights_digest
from internvl_jax.models import VisionHalf
from internvl_jax.serving.dvd import VisionServer, VisionServerLimits, greeting
from internvl_jax.serving.http_server import serving_beside
from internvl_jax.serving.metrics import Metrics
from internvl_jax.serving.vision_metrics import add_vision_server


def check_wire(address: str, secret: bytes | None) -> None:
    """Raises InputError for an address of the wire, or a secret, that can't be."""
    greeting.check_secret(secret)
    greeting.endpoint(address, secret)


def serve_vision(
    load: Callable[[], tuple[VisionHalf, Processor]],
    address: str,
    secret: bytes | None,
    health: socket.socket | None,
    ready: Callable[[str], None],
) -> None:
    """Gives features of tiles to language servers until the process is told to end.

    Args:
      load: gives the model and its processor.
      address: HOST:PORT of the wire.
      secret: shared with the language servers.
      health: where /health, /ready and /metrics are told; None: nowhere.
      ready: called with the address once tiles are taken.
    """
    metrics, begun = Metrics(), threading.Event()
    with contextlib.nullcontext() if health is None else serving_beside(_probes(metrics, begun), health):
        server = _vision_server(*load(), address, secret)
        with server:
            add_vision_server(metrics, server)
            begun.set()
            ready(server.address)
            server.wait()


def _vision_server(model: VisionHalf, processor: Processor, address: str, secret: bytes | None) -> VisionServer:
    # On a CPU tiles pass the tower one by one in any case, and who waits for one waits for all of its batch.
    sizes = (1, 2, 4) if jax.default_backend() == "cpu" else (1, 2, 4, 8, 16, 32)
    tower, limits = VisionTower(model, sizes), VisionServerLimits(batch=sizes[-1])
    config, weights = fingerprint(model, processor).encode(), weights_digest(model).encode()
    tower.warm_up()
    return VisionServer(
        tower.encode, model.config, address, model=config, weights=weights, secret=secret, limits=limits
    )


def _probes(metrics: Metrics, begun: threading.Event) -> Starlette:
    def state(request: Request) -> Response:
        word = "ready" if begun.is_set() else "starting"
        return JSONResponse({"status": word}, 200 if begun.is_set() else 503)

    def numbers(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(routes=[Route("/health", state), Route("/ready", state), Route("/metrics", numbers)])
