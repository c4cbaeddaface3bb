"""What openai's client, and one that writes its own bodies, are told of what can't be answered; see `client_checks`."""

import json
import sys
from collections.abc import Callable

import openai
from client_checks import CHECKS, CLIENT, MODEL, QUESTION, SHOWN, asking, check, create, equal, main, raw

REFUSED = {
    "an empty conversation": ({"messages": []}, 400, "messages"),
    "an unknown role": ({"messages": [{"role": "robot", "content": "x"}]}, 400, None),
    "a tool's message": ({"messages": [*QUESTION, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, 400, None),
    "an answer that is not last": ({"messages": [{"role": "assistant", "content": "x"}]}, 400, None),
    "content that is a number": ({"messages": [{"role": "user", "content": 3}]}, 400, None),
    "an empty list of parts": ({"messages": [{"role": "user", "content": []}]}, 400, None),
    "an unknown part": ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, None),
    "a video": ({"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}]},
                400, None),
    "a picture that is none": ({"messages": asking("x", "data:image/png;base64,AAAA")}, 400, None),
    "a picture cut off": ({"messages": asking("x", SHOWN[: len(SHOWN) // 2])}, 400, None),
    "base64 that is none": ({"messages": asking("x", "data:image/png;base64,%%%")}, 400, None),
    "a picture elsewhere": ({"messages": asking("x", "http://127.0.0.1:1/a.png")}, 400, None),
    "a picture far away": ({"messages": asking("x", "https://example.com/a.png")}, 400, None),
    "a file": ({"messages": asking("x", "file:///etc/hostname")}, 400, None),
    "a path": ({"messages": asking("x", "/etc/hostname")}, 400, None),
    "a picture of the system's": ({"messages": [{"role": "system", "content": asking("x", SHOWN)[0]["content"]},
                                                *QUESTION]}, 400, None),
    "too long": ({"messages": asking("word " * 20_000)}, 400, None),
    "too many tokens": ({"max_completion_tokens": 10**6}, 400, None),
    "no tokens": ({"max_completion_tokens": 0}, 400, "max_completion_tokens"),
    "fewer than no tokens": ({"max_tokens": -1}, 400, "max_tokens"),
    "a high temperature": ({"temperature": 2.5}, 400, "temperature"),
    "a low temperature": ({"temperature": -1}, 400, "temperature"),
    "false for a number": ({"temperature": False}, 400, "temperature"),
    "a text for a number": ({"temperature": "1"}, 400, "temperature"),
    "a number for true": ({"stream": 1}, 400, "stream"),
    "a fraction for a count": ({"n": 1.5}, 400, "n"),
    "no top_p": ({"top_p": 0}, 400, "top_p"),
    "no answers": ({"n": 0}, 400, "n"),
    "too many answers": ({"n": 10_000}, 400, "n"),
    "a huge seed": ({"seed": 2**64}, 400, "seed"),
    "best tokens without their probability": ({"top_logprobs": 2}, 400, "top_logprobs"),
    "too many best tokens": ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    "options of no stream": ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    "too many stops": ({"stop": ["x"] * 1000}, 400, "stop"),
    "an empty stop": ({"stop": ""}, 400, None),
    "a bias of a token that there is not": ({"logit_bias": {"99999999": 1}}, 400, None),
    "a bias of no token": ({"logit_bias": {"yes": 1}}, 400, None),
    "a large penalty": ({"frequency_penalty": 3}, 400, "frequency_penalty"),
    "an unknown format": ({"response_format": {"type": "xml"}}, 400, None),
    "no schema": ({"response_format": {"type": "json_schema"}}, 400, None),
    "a schema that is none": ({"response_format": {"type": "json_schema", "json_schema": {
        "name": "a", "schema": {"type": "wonder"}}}}, 400, None),
    "a regex that is none": ({"structured_outputs": {"regex": "("}}, 400, None),
    "two forms at once": ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, 400, None),
    "an unknown field": ({"temprature": 1}, 400, "temprature"),
    "a removed field": ({"guided_json": {"type": "object"}}, 400, "guided_json"),
    "functions": ({"functions": [{"name": "f"}]}, 400, "functions"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
    "no tools": ({"tools": []}, 400, "tools"),
    "speech": ({"modalities": ["text", "audio"], "audio": {"voice": "x", "format": "wav"}}, 400, None),
    "a prediction": ({"prediction": {"type": "content", "content": "x"}}, 400, "prediction"),
    "the web": ({"web_search_options": {}}, 400, "web_search_options"),
    "two wishes of thinking": ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
                               400, None),
    "an unknown effort": ({"reasoning_effort": "huge"}, 400, "reasoning_effort"),
    "another model": ({"model": "gpt-5"}, 404, "model"),
    "no tiles": ({"max_dynamic_patch": 0}, 400, "max_dynamic_patch"),
    "a model that is a number": ({"model": 3}, 400, "model"),
}  # fmt: skip


def is_error(body, status: int, param: str | None) -> None:
    equal(set(body), {"error"})
    error = body["error"]
    equal(set(error), {"message", "type", "param", "code"})
    assert isinstance(error["message"], str) and 0 < len(error["message"]) < 2000 and "\n" not in error["message"], body
    assert isinstance(error["type"], str) and isinstance(error["code"], str | None), body
    assert isinstance(error["param"], str | None), body
    if param is not None:
        equal(error["param"], param)
    for secret in ("Traceback", "site-packages", "internvl_jax/"):
        assert secret not in error["message"], body


def refusal(name: str) -> Callable[[], None]:
    def refused() -> None:
        extra, status, param = REFUSED[name]
        body = {"messages": QUESTION, "max_completion_tokens": 4} | extra
        for stream in (False, True):
            given = body if "stream" in body or not stream or "stream_options" in body else body | {"stream": True}
            code, answer = raw("POST", "/v1/chat/completions", json.dumps(given).encode())
            assert code == status, f"status {code}: {answer}"
            is_error(answer, status, param)

    refused.__name__ = f"{name} is refused"
    return refused


CHECKS += [refusal(name) for name in REFUSED]


@check
def classes_of_errors():
    for kind, call in (
        (openai.BadRequestError, lambda: create([])),
        (openai.NotFoundError, lambda: create(model="gpt-5")),
        (openai.NotFoundError, lambda: CLIENT.models.retrieve("gpt-5")),
        (openai.NotFoundError, lambda: CLIENT.responses.create(model=MODEL, input="x")),
        (openai.NotFoundError, lambda: CLIENT.embeddings.create(model=MODEL, input="x")),
        (openai.AuthenticationError, lambda: CLIENT.with_options(api_key="wrong").models.list()),
        (openai.AuthenticationError, lambda: CLIENT.with_options(api_key="wrong").chat.completions.create(
            model=MODEL, messages=QUESTION)),
    ):  # fmt: skip
        try:
            call()
        except openai.APIStatusError as error:
            assert type(error) is kind, f"{type(error).__name__} is not {kind.__name__}: {error}"
            is_error({"error": error.body}, error.status_code, None)
        else:
            raise AssertionError(f"no {kind.__name__}")
    try:
        create(model="gpt-5")
    except openai.NotFoundError as error:
        equal((error.code, error.param), ("model_not_found", "model"))
    try:
        create(asking("word " * 20_000))
    except openai.BadRequestError as error:
        equal(error.code, "context_length_exceeded")


@check
def bodies_that_are_none():
    path = "/v1/chat/completions"
    for body in (b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b'{"messages": "\xff"}', b"[" * 100_000,
                 b'{"messages": [], "messages": []}', b'{"temperature": NaN}', b'{"temperature": 1e999}',
                 b'{"seed": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}"):  # fmt: skip
        code, answer = raw("POST", path, body)
        assert code == 400, f"{body[:40]!r}: status {code}: {answer}"
        is_error(answer, 400, None)
    for method, wrong, status in (
        ("GET", path, 405), ("PUT", path, 405), ("DELETE", "/v1/models", 405), ("POST", "/v1/nothing", 404),
        ("GET", "/v1", 404), ("GET", "/docs", 404), ("GET", "/../../etc/passwd", 404), ("POST", "/", 405),
    ):  # fmt: skip
        code, answer = raw(method, wrong, b"{}" if method in ("POST", "PUT") else None)
        assert code == status, f"{method} {wrong}: status {code}: {answer}"
        is_error(answer, status, None)
    code, answer = raw("POST", path, b"{}", Content_Length=str(1 << 40))
    equal(code, 413)
    is_error(answer, 413, None)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        code, answer = raw("POST", path, json.dumps({"messages": QUESTION, "max_tokens": 1}).encode(),
                           Content_Type=kind)  # fmt: skip
        assert code in (200, 400, 415), code


if __name__ == "__main__":
    sys.exit(main())
