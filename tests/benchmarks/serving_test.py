"""The load generator, against a server of a few lines."""

import asyncio
import contextlib
import itertools
import json
import statistics
import time

import pytest

from benchmarks import serving
from benchmarks.http_client import Address, Heard, ask, fetch
from benchmarks.serving import Bodies, Goal, OfferedLoad, arrivals, measure, quantile, report
from internvl_jax.errors import InputError

EVENTS = (
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"index": 0, "delta": {"reasoning": "hm"}}]},
    {"choices": [{"index": 0, "delta": {"content": "a dög"}}]},
    {"choices": [{"index": 0, "delta": {"content": "!"}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"completion_tokens": 4, "prompt_tokens": 10}},
)


@contextlib.asynccontextmanager
async def answering(answer):
    """A server whose `answer(body) -> pieces` are sent as they are, a moment apart."""

    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        size = int(head.split("Content-Length: ")[1].split("\r\n")[0])
        with contextlib.suppress(OSError):  # the client has left
            for piece in answer(head, await reader.readexactly(size)):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.002)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    under_way = set()

    async def serve_noted(reader, writer):
        under_way.add(asyncio.current_task())
        await serve(reader, writer)

    async with await asyncio.start_server(serve_noted, "127.0.0.1", 0) as server:
        yield Address.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", "sk-x")
        await asyncio.gather(*under_way)


def whole(status: int, value: object, *headers: str) -> bytes:
    body = json.dumps(value).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def stream(events=EVENTS, size: int = 1000, end: bytes = b"data: [DONE]\n\n") -> list[bytes]:
    """A chunked stream of events in pieces of `size` bytes, wherever that cuts them."""
    text = b": keep-alive\n\n" + b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events) + end
    cut = [text[at : at + size] for at in range(0, len(text), size)]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return [head, *(b"%x\r\n%s\r\n" % (len(each), each) for each in cut), b"0\r\n\r\n"]


def heard_of(pieces: list[bytes], seconds: float = 5) -> Heard:
    async def hear():
        async with answering(lambda *_: pieces) as address:
            return await ask(address, b"{}", seconds)

    return asyncio.run(hear())


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
def test_a_stream_is_heard_wherever_it_is_cut(size):
    heard = heard_of(stream(size=size))
    assert (heard.status, heard.error, heard.whole) == (200, "", True)
    assert (heard.texts, heard.thoughts, heard.ends) == ({0: "a dög!"}, {0: "hm"}, {0: "stop"})
    assert heard.usage["completion_tokens"] == 4
    assert len(heard.pieces) == 3  # the opening chunk says nothing
    assert heard.sent < heard.pieces[0] <= heard.pieces[-1] <= heard.ended


def test_whole_answers_and_refusals():
    choice = {"index": 0, "message": {"role": "assistant", "content": "yes", "refusal": None}, "finish_reason": "stop"}
    heard = heard_of([whole(200, {"choices": [choice], "usage": {"completion_tokens": 1}})])
    assert heard.whole and heard.texts == {0: "yes"} and len(heard.pieces) == 1
    error = {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": "server_busy"}}
    heard = heard_of([whole(429, error, "Retry-After: 3")])
    assert (heard.status, heard.error, heard.retry, heard.whole) == (429, "server_busy", "3", False)


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([], 0),
        ([b"what?\r\n\r\n"], 0),
        ([whole(200, {"choices": []})[:-3]], 0),
        (stream(end=b""), 0),  # no [DONE]
        (stream()[:-3], 0),
        (stream([*EVENTS[:3], {"error": {"message": "broken", "code": None}}]), 200),
    ],
)
def test_what_breaks_off_is_not_an_answer(pieces, status):
    heard = heard_of(pieces)
    assert not heard.whole and heard.status == status and heard.error


def test_a_server_that_says_nothing_is_given_up():
    async def hear():
        async with answering(lambda *_: []) as address:
            return await ask(Address(address.host, 1), b"{}", 5)

    began = time.perf_counter()
    heard = heard_of([stream()[0]] + [b""] * 200, seconds=0.2)
    assert heard.error.startswith("no end") and time.perf_counter() - began < 2
    assert asyncio.run(hear()).error  # nobody listens there


def test_the_report_is_arithmetic():
    one = Heard(200, 10.0, 11.5, [11.0, 11.2, 11.4], {0: "abc"}, usage={"completion_tokens": 5, "prompt_tokens": 20})
    two = Heard(200, 10.0, 13.0, [12.5], {0: "a"}, usage={"completion_tokens": 1, "prompt_tokens": 20})
    one.usage["prompt_tokens_details"] = {"cached_tokens": 10}
    lost = Heard(429, 10.0, 10.1, error="server_busy")
    found = report([(one, 5), (two, 2), (lost, 5)], seconds=4.0, goal=Goal(first=1.0, between=0.11))
    assert (found["requests"], found["answered"], found["wrong_lengths"]) == (3, 2, 1)
    assert found["not_answered"] == {"429 server_busy": 1}
    assert (found["requests_per_s"], found["tokens_per_s"]) == (0.5, 1.5)
    assert found["prompt_cached_share"] == 0.25
    assert found["first_s"]["p50"] == pytest.approx(1.75)
    assert found["gap_s"]["p99"] == pytest.approx(0.2)
    assert found["token_s"]["p99"] == pytest.approx(0.1, rel=0.02)
    assert (found["goodput_per_s"], found["goodput_share"]) == (0.25, 0.333)
    json.dumps(found, allow_nan=False)


def test_percentiles():
    assert quantile([], 50) is None and quantile([3.0], 99) == 3.0
    assert [quantile([*map(float, range(101))], percent) for percent in (50, 90, 99)] == [50, 90, 99]


def test_arrivals_are_random_with_the_rate_asked_for():
    async def moments() -> list[float]:
        began = time.perf_counter() - 1000  # all of them are due
        return [due - began async for due in arrivals(OfferedLoad(rate=2.0, seconds=999), began)]

    found = asyncio.run(moments())
    between = [after - before for before, after in itertools.pairwise(found)]
    assert found == sorted(found) and found[-1] < 999
    assert len(found) == pytest.approx(1998, rel=0.1)
    # Of an exponential distribution the deviation is the mean.
    assert statistics.stdev(between) == pytest.approx(statistics.mean(between), rel=0.1)


def test_bodies_are_as_asked_and_differ():
    traffic = OfferedLoad(pictures=(((40, 20), (20, 20)), ()), words=(3, 5), tokens=(4, 9))
    bodies = Bodies(traffic, "m")
    made = [bodies.make() for _ in range(8)]
    values = [json.loads(body) for body, _ in made]
    shown = [[part["type"] for part in value["messages"][0]["content"]] for value in values]
    assert shown == [["image_url", "image_url", "text"], ["text"]] * 4
    urls = {part["image_url"]["url"] for value in values for part in value["messages"][0]["content"][:-1]}
    assert len(urls) == 8 and {tokens for _, tokens in made} <= set(range(4, 10))
    assert [value["max_completion_tokens"] for value in values] == [tokens for _, tokens in made]
    pooled = Bodies(OfferedLoad(pictures=(((20, 20),),), pool=2), "m")
    assert len({json.loads(pooled.make()[0])["messages"][0]["content"][0]["image_url"]["url"] for _ in range(9)}) == 2


@pytest.mark.parametrize("traffic", [{"concurrency": 3}, {"rate": 60.0}])
def test_a_server_is_measured(traffic):
    asked = []

    def answer(head: str, body: bytes) -> list[bytes]:
        assert "Authorization: Bearer sk-x" in head
        if head.startswith("GET /v1/models"):
            return [whole(200, {"data": [{"id": "m"}]})]
        asked.append(json.loads(body))
        return stream()

    async def run():
        async with answering(answer) as address:
            return await measure(address, OfferedLoad(**traffic, seconds=0.5, warm=0.2, tokens=(4, 4)), Goal())

    found = asyncio.run(run())
    assert found["answered"] == found["requests"] > 5 and not found["not_answered"]
    assert found["wrong_lengths"] == 0 and found["goodput_share"] == 1
    assert len(asked) > found["requests"]  # those before don't count
    assert len({json.dumps(each["messages"]) for each in asked}) == len(asked)
    assert found["client"]["cpu"] < 2


def test_what_can_not_be_measured_is_said():
    with pytest.raises(InputError, match="no server answers"):
        serving.measured("http://127.0.0.1:1", OfferedLoad(), Goal())
    for url in ("nonsense", "127.0.0.1:8000", "https://127.0.0.1", "http://127.0.0.1:port", "http://[::1", "http://"):
        with pytest.raises(InputError, match="no address of a server"):
            Address.of(url)
    for text in ("448", "0x3", "axb", "448x448x3"):
        with pytest.raises(InputError, match="size of a picture"):
            serving.sizes_of([text])
    assert serving.sizes_of(["448x448", "none", "1x2+3x4"]) == (((448, 448),), (), ((1, 2), (3, 4)))
    assert (serving.range_of("32", "tokens"), serving.range_of("8-32", "words")) == ((32, 32), (8, 32))
    for text in ("", "a", "3-", "-3", "1-2-3"):
        with pytest.raises(InputError, match="--words"):
            serving.range_of(text, "words")
    with pytest.raises(InputError, match="smaller one first"):
        OfferedLoad(tokens=(9, 3))


def test_a_busy_server_is_told_as_such():
    async def run():
        async with answering(lambda *_: [whole(503, {"error": {"message": "starting"}})]) as address:
            assert (await fetch(address, "/health"))[0] == 503
            with pytest.raises(InputError, match="503"):
                await measure(address, OfferedLoad(), Goal())

    asyncio.run(run())
