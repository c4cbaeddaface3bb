"""HTTP requests that are nearly right, or nothing like it, and what a server may do with each.

Every request is answered within `SECONDS` with 2xx or 4xx, also those that stand still in their middle. Where the HTTP
itself is right, a refusal is JSON in OpenAI's shape; where it isn't, the HTTP library's own words with 400 will do, or
that the connection ends.
"""

import asyncio
import dataclasses
import json
import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.http_client import Address, connected, parts, read_head
from tests.fuzzing import mutate

SECONDS = 10.0
Rng = random.Random


@dataclasses.dataclass
class Attempt:
    """What a client does on one connection.

    Attributes:
      pieces: bytes, and seconds to wait after each.
      answers: how many answers must come; 0: the client leaves without one.
      right: whether it is HTTP, so that refusals are of the server's own making.
      methods: of the requests, for what has no body in its answer.
      leaves: whether the client ends its side after the last piece.
    """

    pieces: list[tuple[bytes, float]]
    answers: int = 1
    right: bool = True
    method: str = "POST"
    leaves: bool = False


class Bodies:
    """Makes attempts, each from a number alone.

    Args:
      address: of the server.
      documents: bodies that are right, by path.
      seed: of all of them.
    """

    def __init__(self, address: Address, documents: Sequence[tuple[str, Any]], seed: int = 0):
        self._address, self._documents, self._seed = address, documents, seed
        shares: dict[Callable[[Rng], Attempt], int] = {
            self._values: 60,
            self._bytes: 14,
            self._kinds_of_content: 4,
            self._chunked: 5,
            self._slow: 2,
            self._pipelined: 4,
            self._cut_off: 4,
            self._paths: 3,
            self._headers: 3,
            self._no_http: 1,
        }
        self._kinds = [make for make, share in shares.items() for _ in range(share)]

    def make(self, number: int) -> tuple[str, Attempt]:
        """Its kind and what is done."""
        rng = Rng(zlib.crc32(f"{self._seed} bodies {number}".encode()))
        make = rng.choice(self._kinds)
        return make.__name__.strip("_"), make(rng)

    def _one(self, rng: Rng) -> tuple[str, Any]:
        return rng.choice(self._documents)

    def _mutated(self, rng: Rng) -> tuple[str, bytes]:
        path, document = self._one(rng)
        value = document if rng.random() < 0.2 else mutate.value(rng, document, rng.choice((1, 1, 3)))
        return path, json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")

    def _head(self, path: str, *lines: str, method: str = "POST") -> bytes:
        host = f"Host: {self._address.host}:{self._address.port}"
        return "\r\n".join([f"{method} {path} HTTP/1.1", host, *lines, self._address.headers]).encode() + b"\r\n"

    def _whole(self, path: str, body: bytes, *lines: str, close: bool = True) -> bytes:
        more = ["Connection: close"] * close
        kind = [] if any(line.startswith("Content-Type") for line in lines) else ["Content-Type: application/json"]
        return self._head(path, *kind, f"Content-Length: {len(body)}", *more, *lines) + body

    def _values(self, rng: Rng) -> Attempt:
        return Attempt([(self._whole(*self._mutated(rng)), 0)])

    def _bytes(self, rng: Rng) -> Attempt:
        path, document = self._one(rng)
        return Attempt([(self._whole(path, mutate.document(rng, document)), 0)])

    def _kinds_of_content(self, rng: Rng) -> Attempt:
        path, body = self._mutated(rng)
        kind = rng.choice(
            ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "image/png", "",
             "application/json; charset=utf-16", "application/json; charset=utf-8", "Application/JSON", "a/b/c", "\t")
        )  # fmt: skip
        return Attempt([(self._whole(path, body, f"Content-Type: {kind}"), 0)])

    def _chunked(self, rng: Rng) -> Attempt:
        path, body = self._mutated(rng)
        head = self._head(path, "Content-Type: application/json", "Transfer-Encoding: chunked", "Connection: close")
        pieces, right = [(head, 0.0)], rng.random() < 0.7
        while body:
            size = rng.choice((1, 7, 100, 5000)) if len(body) < 2000 else rng.choice((5000, 70_000))
            pieces.append((b"%x\r\n%s\r\n" % (len(body[:size]), body[:size]), 0.0))
            body = body[size:]
        pieces.append((b"0\r\n\r\n", 0.0))
        if not right:
            spoiled = rng.randrange(len(pieces))
            pieces[spoiled] = (mutate.damaged(rng, pieces[spoiled][0]), 0.0)
        return Attempt(pieces, right=right)

    def _slow(self, rng: Rng) -> Attempt:
        content = self._whole(*self._mutated(rng))[:4000]
        step = max(1, len(content) // rng.randint(2, 12))
        return Attempt([(content[at : at + step], rng.uniform(0, 0.1)) for at in range(0, len(content), step)])

    def _pipelined(self, rng: Rng) -> Attempt:
        count = rng.randint(2, 4)
        whole = [self._whole(*self._mutated(rng), close=number == count - 1) for number in range(count)]
        return Attempt([(b"".join(whole), 0)], answers=count)

    def _cut_off(self, rng: Rng) -> Attempt:
        content = self._whole(*self._mutated(rng))
        content = content[: rng.randrange(len(content))]
        stays = rng.random() < 0.1 and b"\r\n\r\n" in content  # the server's own patience ends it
        return Attempt([(content, 0)], answers=int(stays), leaves=not stays)

    def _paths(self, rng: Rng) -> Attempt:
        path = rng.choice(
            ("/", "/v1", "/v1/", "/v1/models", "/v1/models/", "/v1/models/%00", "/v1/models/" + "x" * 3000, "//", "/..",
             "/%2e%2e/etc/passwd", "/v1/chat/completions/", "/v1/chat/completions?x=" + "y" * 500, "/health", "/ready",
             "/metrics", "/openapi.json", "/docs", "/\u00e9", "/%ff", "/v1/models/../../x", "/v1/models/a%2Fb", "/*")
        )  # fmt: skip
        method = rng.choice(("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD"))
        return Attempt([(self._raw_head(method, path), 0)], right=path.isascii(), method=method)

    def _raw_head(self, method: str, path: str) -> bytes:
        return self._head(path, "Connection: close", "Content-Length: 0", method=method)

    def _headers(self, rng: Rng) -> Attempt:
        path, body = self._mutated(rng)
        lines = rng.choice(
            (["Content-Length: -1"], ["Content-Length: 1e3"], ["Content-Length: 5", "Content-Length: 6"],
             ["Content-Length: 99999999999999999999999999"], ["Transfer-Encoding: gzip"],
             ["Transfer-Encoding: chunked", "Content-Length: 3"], ["Host: evil.example"], ["X: " + "y" * 100_000],
             ["Expect: 100-continue"], ["Upgrade: websocket", "Connection: Upgrade"], ["Content-Encoding: gzip"],
             ["Accept: nothing"], ["Cookie: \x01"], ["No colon"], [" folded: x"],
             ["Authorization: Bearer " + "z" * 5000], ["Content-Length: \u0663"])
        )  # fmt: skip
        plain = ("Expect", "Content-Encoding", "Accept", "Authorization")
        right = lines[0].startswith(plain)
        content = self._head(path, "Content-Type: application/json", f"Content-Length: {len(body)}",
                             "Connection: close", *lines) + body  # fmt: skip
        return Attempt([(content, 0)], right=right)

    def _no_http(self, rng: Rng) -> Attempt:
        content = rng.choice(
            (rng.randbytes(rng.randint(1, 2000)), b"\r\n" * 100, b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"\0" * 500,
             b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * 2000 + b"\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
             b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET " + b"/" * 70_000)
        )  # fmt: skip
        return Attempt([(content, 0)], answers=0, right=False, leaves=True)


async def judge(address: Address, attempt: Attempt) -> tuple[list[int], str]:
    """Statuses of the answers, and what is wrong with them; "" where nothing is."""
    statuses: list[int] = []
    try:
        async with asyncio.timeout(SECONDS):
            async with connected(address) as (reader, writer):
                return statuses, await _talk(reader, writer, attempt, statuses)
    except TimeoutError:
        return statuses, f"no end within {SECONDS:g} s"
    except (ConnectionError, EOFError) as error:
        # Whoever sends more than the server wants to read may find the connection gone before the answer is read.
        return statuses, "" if not attempt.right or not attempt.answers else f"{type(error).__name__}: {error}"


async def _talk(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, attempt: Attempt, statuses: list[int]
) -> str:
    for content, pause in attempt.pieces:
        writer.write(content)
        await writer.drain()
        await asyncio.sleep(pause)
    if attempt.leaves:
        if attempt.answers == 0:
            return ""
        writer.write_eof()
    while len(statuses) < attempt.answers:
        status, headers = await read_head(reader)
        if status == 100:
            continue
        statuses.append(status)
        none = attempt.method == "HEAD" or status in (204, 304)
        body = b"" if none else b"".join([part async for part in parts(reader, headers)])
        if not (200 <= status < 300 or 400 <= status < 500):
            return f"status {status}: {body[:300]!r}"
        if status >= 400 and attempt.right and not none and (what := shapeless(body)):
            return f"status {status}, {what}: {body[:300]!r}"
        if headers.get("connection", "").lower() == "close":
            break
    return ""


def shapeless(body: bytes) -> str:
    """What a refusal lacks of OpenAI's shape; "" where nothing."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return "no error object"
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
        return "other fields"
    kinds = {"message": str, "type": str, "param": str | None, "code": str | None}
    wrong = [name for name, kind in kinds.items() if not isinstance(error[name], kind)]
    if wrong or not error["message"] or len(error["message"]) > 2000 or "\n" in error["message"]:
        return f"no sentence, or no text: {wrong}"
    return "words of the program" if "Traceback" in error["message"] else ""
