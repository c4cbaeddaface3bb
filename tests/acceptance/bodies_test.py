"""The judge of answers finds what it is there for."""

import asyncio
import contextlib
import json

import pytest

from benchmarks.http_client import Address
from tests.acceptance import bodies
from tests.acceptance.bodies import Attempt, Bodies, judge

ERROR = {"error": {"message": "no.", "type": "invalid_request_error", "param": None, "code": None}}
DOCUMENTS = [("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4})]


def answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def judged(reply: bytes, attempt: Attempt) -> tuple[list[int], str]:
    async def run() -> tuple[list[int], str]:
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.write(reply)
            with contextlib.suppress(OSError):
                while not reply.endswith(b"bye") and await reader.read(1000):
                    pass
                writer.close()
                await writer.wait_closed()
            ended.set()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            found = await judge(Address("127.0.0.1", server.sockets[0].getsockname()[1]), attempt)
            await ended.wait()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "body", "wrong"),
    [
        (200, b"{}", ""),
        (400, json.dumps(ERROR).encode(), ""),
        (500, json.dumps(ERROR).encode(), "status 500"),
        (307, b"", "status 307"),
        (400, b"Invalid HTTP request received.", "no error object"),
        (422, b'{"detail": "x"}', "no error object"),
        (400, b'{"error": {"message": "x"}}', "other fields"),
        (400, json.dumps({"error": ERROR["error"] | {"code": 400}}).encode(), "code"),
        (400, json.dumps({"error": ERROR["error"] | {"message": "a\nb"}}).encode(), "no sentence"),
        (400, json.dumps({"error": ERROR["error"] | {"message": "Traceback of x"}}).encode(), "words of the program"),
    ],
)
def test_answers_are_judged(status, body, wrong):
    statuses, found = judged(answer(status, body), Attempt([(b"POST / HTTP/1.1\r\n\r\n", 0)]))
    assert statuses == [status]
    assert wrong in found and bool(wrong) == bool(found)


def test_what_is_no_http_may_have_the_librarys_own_words():
    assert judged(answer(400, b"Invalid HTTP request received."), Attempt([(b"GET x", 0)], right=False)) == ([400], "")


def test_hangs_and_lost_answers_are_faults(monkeypatch):
    monkeypatch.setattr(bodies, "SECONDS", 0.3)
    two = Attempt([(b"POST / HTTP/1.1\r\n\r\n", 0)], answers=2)
    assert "no end within 0.3 s" in judged(answer(200, b"{}"), two)[1]
    assert "IncompleteReadError" in judged(b"bye", two)[1]


def test_a_number_brings_an_attempt_back():
    address = Address("127.0.0.1", 1)
    first, again = (Bodies(address, DOCUMENTS, seed=3) for _ in range(2))
    made = [first.make(number) for number in range(400)]
    assert [again.make(number) for number in reversed(range(400))] == made[::-1]
    assert {kind for kind, _ in made} == {
        *(
            "values",
            "bytes",
            "kinds_of_content",
            "chunked",
            "slow",
            "pipelined",
            "cut_off",
            "paths",
            "headers",
            "no_http",
        )
    }
    assert Bodies(address, DOCUMENTS, seed=4).make(1) != made[1]
