"""A small HTTP/1.1 client for load: a connection for each request, events as they come, and when each came.

Libraries for HTTP take several times the processor time for a piece, which on a small machine would be taken from the
server that is measured.
"""

import asyncio
import contextlib
import dataclasses
import json
import time
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from internvl_jax.errors import InputError

_DATA, _DONE = b"data: ", b"[DONE]"


@dataclasses.dataclass
class Heard:
    """What came of a request.

    Attributes:
      status: of HTTP; 0 where there was no whole answer.
      sent, ended: `time.perf_counter` of sending and of the end.
      pieces: of every piece with words, or the whole answer.
      texts, thoughts: of each answer, by its number.
      retry: seconds after which the server wants to be asked again; "" where it doesn't say.
      ends: why each ended.
      usage: what the server says that it took.
      error: the code or message of what went wrong; "" where nothing did.
    """

    status: int = 0
    sent: float = 0.0
    ended: float = 0.0
    pieces: list[float] = dataclasses.field(default_factory=list)
    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    thoughts: dict[int, str] = dataclasses.field(default_factory=dict)
    retry: str = ""
    ends: dict[int, str] = dataclasses.field(default_factory=dict)
    usage: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""

    @property
    def whole(self) -> bool:
        """Whether all of it was answered."""
        return self.status == 200 and not self.error


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
      host, port: of it.
      headers: lines that go with every request, such as the key.
    """

    host: str
    port: int
    headers: str = ""

    @classmethod
    def of(cls, url: str, key: str = "") -> "Address":
        """Of http://HOST:PORT/.

        Raises:
          InputError: it is something else.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host = None
        if not host or parts.scheme != "http":
            raise InputError(f"{url!r} is no address of a server; write it as http://HOST:PORT")
        return cls(host, port, f"Authorization: Bearer {key}\r\n" if key else "")

    def head(self, method: str, path: str, size: int) -> bytes:
        """The head of a request with a JSON body of `size` bytes."""
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {size}\r\n{self.headers}\r\n"
        ).encode()


async def ask(address: Address, body: bytes, seconds: float, path: str = "/v1/chat/completions") -> Heard:
    """Sends a request and hears all of the answer, a stream or not; never raises for what the server does.

    Args:
      seconds: after which it is given up.
    """
    heard = Heard(sent=time.perf_counter())
    try:
        async with asyncio.timeout(seconds):
            async with connected(address) as (reader, writer):
                writer.write(address.head("POST", path, len(body)) + body)
                await _hear(reader, heard)
    except TimeoutError:
        heard.status, heard.error = 0, f"no end after {seconds:g} s"
    except (OSError, EOFError, ValueError) as error:
        heard.status, heard.error = 0, f"{type(error).__name__}: {error}"
    heard.ended = time.perf_counter()
    return heard


async def fetch(address: Address, path: str) -> tuple[int, bytes]:
    """What GET gives: its status and body.

    Raises:
      OSError, EOFError: nobody answers.
    """
    async with connected(address) as (reader, writer):
        writer.write(address.head("GET", path, 0))
        status, headers = await read_head(reader)
        return status, b"".join([part async for part in parts(reader, headers)])


@contextlib.asynccontextmanager
async def connected(address: Address) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, gone at the end whatever happened."""
    reader, writer = await asyncio.open_connection(address.host, address.port, limit=1 << 24)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, their names in small letters, of an answer.

    Raises:
      ValueError: what came is not HTTP.
    """
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, status, *_ = first.split(" ", 2)
    if not version.startswith("HTTP/1."):
        raise ValueError(f"this is no HTTP: {first[:80]!r}")
    named = (line.partition(":") for line in lines if line)
    return int(status), {name.lower(): value.strip() for name, _, value in named}


async def parts(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    """The body, as it comes where it is chunked."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        length = headers.get("content-length")
        yield await (reader.read() if length is None else reader.readexactly(int(length)))
        return
    while size := int((await reader.readline()).partition(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readline()


async def _hear(reader: asyncio.StreamReader, heard: Heard) -> None:
    status, headers = await read_head(reader)
    heard.retry = headers.get("retry-after", "")
    if headers.get("content-type", "").startswith("text/event-stream"):
        await _hear_events(reader, headers, heard)
    else:
        body = json.loads(b"".join([part async for part in parts(reader, headers)]))
        heard.usage = body.get("usage") or {}
        heard.error = _error(body)
        for choice in body.get("choices", ()):
            _note(heard, choice, choice.get("message", choice))
        heard.pieces.append(time.perf_counter())
    heard.status = status
    if status != 200 and not heard.error:
        raise ValueError(f"status {status} without a word")


async def _hear_events(reader: asyncio.StreamReader, headers: Mapping[str, str], heard: Heard) -> None:
    left, done = b"", False
    async for part in parts(reader, headers):
        *events, left = (left + part).split(b"\n\n")
        for event in events:
            if done or not event.startswith(_DATA):  # else a comment that keeps the connection alive
                continue
            if event == _DATA + _DONE:
                done = True
                continue
            said = msgspec.json.decode(event[len(_DATA) :])
            heard.error = heard.error or _error(said)
            heard.usage = said.get("usage") or heard.usage
            for choice in said.get("choices", ()):
                if _note(heard, choice, choice.get("delta", choice)):
                    heard.pieces.append(time.perf_counter())
    if not done:
        raise EOFError("the stream broke off")


def _note(heard: Heard, choice: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """Adds to an answer; says whether there was anything to add."""
    number, thought, text = choice["index"], said.get("reasoning") or "", said.get("content") or said.get("text") or ""
    heard.texts[number] = heard.texts.get(number, "") + text
    heard.thoughts[number] = heard.thoughts.get(number, "") + thought
    if choice.get("finish_reason"):
        heard.ends[number] = choice["finish_reason"]
    return bool(thought or text)


def _error(said: Mapping[str, Any]) -> str:
    error = said.get("error") or {}
    return str(error.get("code") or error.get("message") or "") if isinstance(error, dict) else str(error)
