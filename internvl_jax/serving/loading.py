"""Answers for a server whose model is being loaded."""

import contextlib
import socket
from typing import Any

from internvl_jax.serving.api_keys import ApiKeys
from internvl_jax.serving.door import Door, Doors
from internvl_jax.serving.endpoints import as_json
from internvl_jax.serving.http_server import serving_beside
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.refusing import Refusing


def loading(listening: socket.socket, keys: ApiKeys, limits: Limits) -> contextlib.AbstractContextManager[None]:
    """As long as it lasts, probes are told that the server starts, and all else is refused until later.

    Args:
      listening: where; it stays open for the server itself.
      keys: of clients.
      limits: of the server.
    """
    doors, refusing = Doors(keys, limits), Refusing()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        probed = scope["path"] in ("/health", "/ready")
        response = as_json(doors.state(), 503) if probed else refusing.answer(scope, doors.closed())
        await response(scope, receive, send)

    return serving_beside(Door(app, doors, refusing.answer), listening)
