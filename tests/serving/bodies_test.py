"""One body can't hold up or end the server: what is made of it is bounded before anything is."""

import asyncio
import threading

import pytest
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from internvl_jax.errors import InputError
from internvl_jax.serving import ApiKeys, Limits, bodies, schema
from internvl_jax.serving.door import Door, Doors

REQUESTS = (schema.ChatRequest, schema.CompletionRequest, schema.TokenizeRequest, schema.DetokenizeRequest)


def parts(node):
    """All of pydantic's own description of a class."""
    yield node
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
        yield from parts(each)


@pytest.mark.parametrize("request_class", REQUESTS)
def test_every_list_ends_at_its_first_wrong_element(request_class):
    found = [
        each
        for each in parts(request_class.__pydantic_core_schema__)
        if isinstance(each, dict) and each.get("type") in ("list", "dict") and "fields" not in each
    ]
    elements = [(each, each.get("items_schema") or each.get("values_schema")) for each in found]
    assert found and not [each for each, of in elements if of["type"] != "any" and not each.get("fail_fast")]


@pytest.mark.parametrize(
    ("request_class", "value"),
    [
        (schema.ChatRequest, {"messages": [1] * 5000}),
        (schema.ChatRequest, {"messages": [{"role": "user", "content": [1] * 5000}]}),
        (schema.ChatRequest, {"messages": [{"role": "user", "content": "x"}] * 5000}),
        (schema.ChatRequest, {"messages": [], "logit_bias": dict.fromkeys(map(str, range(5000)), 1)}),
        (schema.CompletionRequest, {"prompt": [True] * 5000}),
        (schema.CompletionRequest, {"prompt": [[True] * 5000] * 5000}),
        (schema.DetokenizeRequest, {"tokens": ["5"] * 5000}),
    ],
)
def test_a_wrong_body_is_a_few_errors(request_class, value):
    with pytest.raises(ValidationError) as error:
        request_class.model_validate(value)
    assert error.value.error_count() < 10 and len(schema.explained(error.value.errors()).message) < 400


def test_objects_have_so_many_fields():
    with pytest.raises(InputError, match="an object of 300 fields"):
        bodies.read_body(b"{%s}" % b",".join(b'"%d": 1' % number for number in range(300)))


@pytest.mark.parametrize("each", [b"{}", b"[]"])
def test_bodies_have_so_many_objects_and_lists(each):
    with pytest.raises(InputError, match="more than 16,384 objects and lists"):
        bodies.read_body(b'{"messages": [' + b",".join([each] * (1 << 14)) + b"]}")


def test_large_bodies_are_read_beside_the_loop(running, monkeypatch):
    """Or whoever sends one would hold up the streams of all others."""
    threads, read = [], bodies.read_body
    monkeypatch.setattr(bodies, "read_body", lambda body: (threads.append(threading.current_thread()), read(body))[1])
    for text in ("x", "x" * 100_000):
        assert running.client.post("/tokenize", json={"prompt": text}).status_code == 200
    assert threads[0] is running._thread is not threads[1]


@pytest.mark.parametrize("mark", [b",", b"[", b"{"])
def test_values_are_counted_as_they_come(running, mark):
    """32 million of them are 64 MB of text, and gigabytes once they are read."""
    doors = running.server.doors
    before, doors.limits = doors.limits, Limits(body_values=1000)
    try:
        for path in ("/tokenize", "/v1/chat/completions"):
            refused = running.client.post(path, content=b"[" + mark * 1200)
            assert refused.status_code == 413 and "more than the 1,000 values" in refused.json()["error"]["message"]
        assert running.client.post("/tokenize", json={"prompt": "a, [b], {c}"}).status_code == 200
    finally:
        doors.limits = before


def test_bodies_are_open_within_one_bound():
    """Those of requests that have not ended count too, and are counted off whatever becomes of them."""
    whole = {"type": "http.request", "body": b"x" * 90, "more_body": False}
    scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost")]}
    inside = []

    async def ask():
        await door(dict(scope), lambda: asyncio.sleep(0, whole), None)

    async def app(scope, receive, send):
        await receive()
        inside.append(scope)
        await ask()

    door = Door(app, Doors(ApiKeys(()), Limits(body_bytes=100, open_bytes=250), phase="ready"), None)
    for _ in range(2):
        inside.clear()
        with pytest.raises(HTTPException, match="holds all the bodies") as refused:
            asyncio.run(ask())
        assert refused.value.status_code == 429 and refused.value.headers["Retry-After"] and len(inside) == 2
    with pytest.raises(InputError, match="less than the 67108864 of one body"):
        Limits(open_bytes=250)
