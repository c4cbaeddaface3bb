"""Says no to requests, and tells the log of it: of each kind the first, and then every now and then how many more."""

import asyncio
import collections
import time
from collections.abc import Collection, MutableMapping
from typing import Any

import msgspec
from starlette.responses import Response

from internvl_jax.serving.endpoints import as_json
from internvl_jax.serving.refusals import Refusal
from internvl_jax.serving.service import requests_log

_SECONDS = 10.0  # between two lines of a kind: who floods the server doesn't flood its log

_Kind = tuple[int, str | None, str]


class Refusing:
    """Refuses the requests of one server, all of them on its event loop.

    Attributes:
      paths: those that the server has. A line names no other: clients may write anything there.
    """

    def __init__(self) -> None:
        self.paths: Collection[str] = ()
        self._more: collections.Counter[_Kind] = collections.Counter()  # refused since the last line of their kind
        self._timers: dict[_Kind, asyncio.TimerHandle] = {}

    def answer(self, scope: MutableMapping[str, Any], refusal: Refusal) -> Response:
        """What the client is told.

        Args:
          scope: the request's, as the door let it in.
        """
        path = scope["path"] if scope["path"] in self.paths else "other"
        kind = refusal.status, refusal.code, path
        if kind in self._timers:
            self._more[kind] += 1
        else:
            seconds = round(time.monotonic() - scope["came"], 4)
            self._tell(kind, {"id": scope["id"], "seconds": seconds})
        return as_json(refusal.body(), refusal.status, refusal.headers)

    def tell_all(self) -> None:
        """Tells what has not been told, at the end of the server."""
        for timer in self._timers.values():
            timer.cancel()
        for kind in list(self._timers):
            self._tell_more(kind)

    def _tell_more(self, kind: _Kind) -> None:
        del self._timers[kind]
        if more := self._more.pop(kind, 0):
            self._tell(kind, {"more": more})

    def _tell(self, kind: _Kind, found: dict[str, Any]) -> None:
        status, code, path = kind
        line = {"refused": status, "code": code, "path": path, "time": round(time.time(), 3), **found}
        requests_log.info(msgspec.json.encode(line).decode())
        self._timers[kind] = asyncio.get_running_loop().call_later(_SECONDS, self._tell_more, kind)
