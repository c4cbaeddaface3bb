"""Who may come in: before anything of a request is read but its head."""

import asyncio
import dataclasses
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal

from starlette.exceptions import HTTPException
from starlette.responses import Response

from internvl_jax.serving.api_keys import ApiKeys
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.refusals import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_OPEN = ("/", "/health", "/ready", "/metrics")  # what needs no key and is told at any time
_WHY = {
    "starting": "the model is being loaded",
    "stopping": "the server is stopping",
    "failed": "the server has failed",
}
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


@dataclasses.dataclass
class Doors:
    """What is let in.

    Attributes:
      keys: the keys that open; without any, everybody may. Then only names of this machine are answered to: a page of
        another host whose name was made to point here may not use the server of whoever looks at it.
      limits: of bodies.
      phase: whether anything is answered.
      vision: how the vision servers are; None where the model has its own tower.
    """

    keys: ApiKeys
    limits: Limits
    phase: Literal["starting", "ready", "stopping", "failed"] = "starting"
    vision: Callable[[], str] | None = None

    @property
    def open(self) -> bool:
        """Whether requests are answered."""
        return self.phase == "ready"

    @property
    def healthy(self) -> bool:
        """Whether the server does what it is for, or will."""
        return self.phase in ("ready", "stopping")

    def state(self) -> dict[str, str]:
        """In words."""
        return {"status": self.phase} | ({} if self.vision is None else {"vision": self.vision()})

    def check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Lets a request in.

        Raises:
          Refusal: it doesn't.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        if not self.keys.digests and not _is_local(host):
            raise Refusal(403, "this server answers to names of its own machine alone.", code="host_not_allowed")
        if path in _OPEN:
            return
        if not self.keys.allows(headers.get(b"authorization", b"").decode("latin-1")):
            headers_out = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, "the key is missing or wrong.", code="invalid_api_key", headers=headers_out)
        if not self.open:
            raise self.closed()
        length = headers.get(b"content-length", b"0").decode("latin-1")
        if not length.isdecimal() or int(length[:20]) > self.limits.body_bytes:
            raise self.too_large()

    def closed(self) -> Refusal:
        """What is told where nothing is answered."""
        retry = {"Retry-After": "5"}
        return Refusal(503, f"{_WHY[self.phase]}; ask again later.", code=self.phase, headers=retry)

    def too_large(self) -> Refusal:
        """What a body over the bound is told."""
        return Refusal(413, f"the body is larger than the {self.limits.body_bytes:,} bytes that this server takes.")


@dataclasses.dataclass
class _Coming:
    """A body on its way.

    Attributes:
      end: `time.monotonic` by which it must be whole.
      size: bytes that have come.
      values: commas and opening brackets among them: a list or object has one fewer than values, and its bracket.
      whole: whether it is.
    """

    end: float
    size: int = 0
    values: int = 0
    whole: bool = False


class Door:
    """Lets requests through to the application, and bounds their bodies, each and all together.

    A request's scope says when it `came` and has an `id`, which clients read in the header `x-request-id`.

    Args:
      app: the application.
      doors: who may come in.
      refuse: makes the response to a request, by its scope, that may not.
    """

    def __init__(self, app: Any, doors: Doors, refuse: Callable[[Message, Refusal], Response]):
        self._app, self._doors, self._refuse = app, doors, refuse
        self._open = 0  # bytes of bodies that came and whose requests have not ended

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["came"], scope["id"] = time.monotonic(), secrets.token_hex(12)
        headers = [*_HEADERS, (b"x-request-id", scope["id"].encode())]

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        try:
            self._doors.check(scope["path"], dict(scope["headers"]))
        except Refusal as refusal:
            await self._refuse(scope, refusal)(scope, receive, send_on)
            return
        coming = _Coming(scope["came"] + self._doors.limits.body_seconds)
        try:
            await self._app(scope, lambda: self._received(coming, receive), send_on)
        finally:
            self._open -= coming.size

    async def _received(self, coming: _Coming, receive: Receive) -> Message:
        """The next of a request, whose body is held against the bounds as it comes."""
        limits = self._doors.limits
        if coming.whole:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(coming.end - time.monotonic(), 0))
        except TimeoutError:
            raise HTTPException(408, f"the body had not come after {limits.body_seconds:g} s.") from None
        part = message.get("body", b"")
        coming.size += len(part)
        self._open += len(part)
        coming.values += sum(map(part.count, (b",", b"[", b"{")))
        coming.whole = not message.get("more_body", False)
        if coming.size > limits.body_bytes:
            raise HTTPException(413, self._doors.too_large().message)
        if coming.values > limits.body_values:
            most = f"{limits.body_values:,} values, commas and brackets of texts included"
            raise HTTPException(413, f"the body has more than the {most}, that this server takes.")
        if self._open > limits.open_bytes:
            busy = "the server is busy: it holds all the bodies that it has memory for; ask again in 1 s."
            raise HTTPException(429, busy, {"Retry-After": "1"})
        return message


def _is_local(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
