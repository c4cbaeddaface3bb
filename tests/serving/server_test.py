"""The API as clients see it: answers are those of `chat`, refusals are OpenAI's, nobody's row outlives its client."""

import asyncio
import base64
import concurrent.futures
import dataclasses
import io
import json
import logging
import signal
import socket
import threading
import time

import httpx
import numpy as np
import PIL.Image
import pytest

from internvl_jax.errors import InputError
from internvl_jax.inference import chat
from internvl_jax.serving import ApiKeys, http_server, ladders, listen, loading, refusing, serve_vision
from internvl_jax.sharding import bind
from tests.serving.conftest import LIMITS, Running

PATH = "/v1/chat/completions"


def png(seed, width=60, height=40):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    data = io.BytesIO()
    PIL.Image.fromarray(pixels).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def ask(text, *pictures):
    parts = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def post(running, messages, **fields):
    response = running.client.post(PATH, json={"messages": messages, "max_tokens": 6, "temperature": 0} | fields)
    assert response.status_code == 200, response.text
    return response.json()


def events(response):
    lines = [line for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_answers_are_those_of_chat(running):
    messages = ask("what is it?", png(3), png(4, 30, 90))
    for sampling in ({}, *({"temperature": 1.0, "seed": seed} for seed in (0, 7, 2**32 - 1))):
        message = post(running, messages, **sampling)["choices"][0]["message"]
        answer = chat(running.model, running.processor, messages, max_new_tokens=6, **sampling)
        assert (message["content"] or "") == answer


def test_the_best_of_several_is_what_most_say(running):
    """Of six candidates, the first greedy, those come first that most agree with; all of them are counted."""
    messages, drawn = ask("what is it?", png(3)), {"temperature": 1.0, "max_tokens": 1, "top_k": 2}
    told = post(running, messages, best_of=6, n=2, seed=4, **drawn)
    texts = [post(running, messages, max_tokens=1)["choices"][0]["message"]["content"]]
    more = [post(running, messages, seed=4 + number, **drawn) for number in range(5)]
    texts += [each["choices"][0]["message"]["content"] for each in more]
    counts = [
        0 if not text else sum(text.strip().lower() == other.strip().lower() for other in texts) for text in texts
    ]
    order = sorted(range(6), key=lambda number: -counts[number])
    assert [each["message"]["content"] for each in told["choices"]] == [texts[number] for number in order[:2]]
    assert [each["index"] for each in told["choices"]] == [0, 1] and told["usage"]["completion_tokens"] == 6
    for fields, said in (
        ({"best_of": 0}, "best_of"),
        ({"best_of": 17, "temperature": 1}, "at most 16"),
        ({"best_of": 2, "n": 3, "temperature": 1}, "at least n, 3"),
        ({"best_of": 2, "stream": True, "temperature": 1}, "leave out stream"),
        ({"best_of": 2, "temperature": 0}, "at temperature 0 all are the same"),
    ):
        response = running.client.post(PATH, json={"messages": messages, **fields})
        assert response.status_code == 400 and response.json()["error"]["param"] == "best_of", response.text
        assert said in response.json()["error"]["message"]


def test_a_stream_is_the_whole_answer_in_pieces(running):
    messages = ask("what is it?", png(5))
    fields = {"n": 2, "seed": 3, "temperature": 1, "logprobs": True, "top_logprobs": 2}
    whole = post(running, messages, **fields)
    stream = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 6}
    response = running.client.post(PATH, json={"messages": messages, **fields, **stream})
    assert response.headers["content-type"].startswith("text/event-stream")
    *pieces, last = events(response)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert {piece["id"] for piece in pieces} == {last["id"]} and all(piece["usage"] is None for piece in pieces)
    for choice in whole["choices"]:
        own = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(each["delta"].get("content", "") for each in own) == choice["message"]["content"]
        assert [each["finish_reason"] for each in own if each["finish_reason"]] == [choice["finish_reason"]]
        told = [token for each in own if each["logprobs"] for token in each["logprobs"]["content"]]
        assert [token["bytes"] for token in told] == [token["bytes"] for token in choice["logprobs"]["content"]]
        assert [token["logprob"] for token in told] == pytest.approx(
            [token["logprob"] for token in choice["logprobs"]["content"]], abs=1e-4
        )


def test_log_probabilities_spell_the_answer(running):
    choice = post(running, ask("what?"), logprobs=True, top_logprobs=3, max_tokens=8)["choices"][0]
    tokens = choice["logprobs"]["content"]
    data = b"".join(bytes(token["bytes"]) for token in tokens)
    assert data.decode(errors="replace") == choice["message"]["content"]
    assert all(token["top_logprobs"][0]["logprob"] == token["logprob"] for token in tokens)  # it was greedy


def test_usage_counts_pictures_and_what_had_been_read(running):
    messages = ask("how many tokens?", png(6))
    first, again = (post(running, messages, max_tokens=2)["usage"] for _ in range(2))
    assert first["prompt_tokens_details"]["multimodal_tokens"] == {"image": 12}
    assert again["prompt_tokens_details"]["cached_tokens"] == again["prompt_tokens"] - 1
    assert first["total_tokens"] == first["prompt_tokens"] + 2


def test_thinking_is_told_apart(running):
    thought = post(running, ask("what?"), chat_template_kwargs={"enable_thinking": True})["choices"][0]["message"]
    assert thought["content"] is None and thought["reasoning"] == thought["reasoning_content"] != ""
    usage = post(running, ask("what?"), reasoning_effort="high")["usage"]["completion_tokens_details"]
    assert usage == {"reasoning_tokens": 6}
    plain = post(running, ask("what?"), reasoning_effort="none")["choices"][0]["message"]
    assert plain["content"] and "reasoning" not in plain


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"response_format": {"type": "json_object"}}, lambda text: isinstance(json.loads(text), dict)),
        ({"structured_outputs": {"choice": ["red", "blue"]}}, lambda text: text in ("red", "blue")),
        ({"structured_outputs": {"regex": "[0-9]{3}"}}, lambda text: len(text) == 3 and text.isdecimal()),
    ],
)
def test_answers_of_a_wanted_shape(running, fields, fits):
    whole = post(running, ask("what?"), temperature=1, seed=1, n=2, max_tokens=120, reasoning_effort="none", **fields)
    for choice in whole["choices"]:
        assert choice["finish_reason"] == "length" or fits(choice["message"]["content"])
    if "structured_outputs" in fields:
        assert {choice["finish_reason"] for choice in whole["choices"]} == {"stop"}


def test_stop_strings_and_forced_length(running):
    text = post(running, ask("what?"), max_tokens=12)["choices"][0]["message"]["content"]
    stop = next(text[at : at + 1] for at in range(1, len(text)) if text[at] != "\N{REPLACEMENT CHARACTER}")
    choice = post(running, ask("what?"), max_tokens=12, stop=[stop])["choices"][0]
    assert choice["message"]["content"] == text[: text.index(stop)] and choice["finish_reason"] == "stop"
    assert post(running, ask("what?"), max_tokens=40, ignore_eos=True)["usage"]["completion_tokens"] == 40


def test_text_is_gone_on_with(running):
    tokens = running.client.post("/tokenize", json={"prompt": "a red"}).json()
    assert running.client.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": "a red"}
    fields = {"max_tokens": 4, "temperature": 0, "logprobs": 1}
    texts = [
        running.client.post("/v1/completions", json={"prompt": given, **fields}).json()
        for given in ("a red", tokens["tokens"])
    ]
    assert texts[0]["choices"] == texts[1]["choices"]
    assert texts[0]["usage"]["prompt_tokens"] == tokens["count"]
    assert len(texts[0]["choices"][0]["logprobs"]["tokens"]) == 4


def test_tokens_are_made_and_read_by_those_who_may(running, monkeypatch):
    """They wait as all others do, count as being written, and the loop goes on meanwhile."""
    service, held = running.server.service, []
    encode, stream = running.processor.tokenizer.encode, type(running.processor.tokenizer.decode_stream())
    decode = stream.feed
    note = lambda: held.append((service.writing, service.admission.requests, threading.current_thread()))
    monkeypatch.setattr(stream, "feed", lambda self, token: (note(), decode(self, token))[1])
    tokens = encode("a red Straße " * 500)
    assert running.client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": "a red Straße " * 500}
    assert len(held) == len(tokens) and set(held[0][:2]) == {1} and running._thread not in {each[2] for each in held}
    assert service.writing == 0
    monkeypatch.setattr(service.admission, "requests", LIMITS.waiting_requests)
    for path, body in (("/tokenize", {"messages": ask("x", png(1))}), ("/detokenize", {"tokens": [5]})):
        assert running.client.post(path, json=body).status_code == 429
    monkeypatch.setattr(service.admission, "requests", 0)
    refused = running.client.post("/detokenize", json={"tokens": [5] * (LIMITS.text_chars + 1)})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tokens"


def test_who_waits_for_a_worker_waits_so_long(running, monkeypatch):
    """The time until a request has begun counts from its arrival, not from where the engine has it."""
    service, workers = running.server.service, running.server._workers
    monkeypatch.setattr(service, "limits", dataclasses.replace(service.limits, first_seconds=0.3))
    monkeypatch.setattr(workers, "_idle", asyncio.Queue())
    for path in (PATH, "/tokenize"):
        late = running.client.post(path, json={"messages": ask("what?", png(1))})
        assert late.status_code == 408 and late.json()["error"]["code"] == "timeout", late.text
        assert "had not begun after" in late.json()["error"]["message"]
    assert service.writing == service.admission.requests == workers.waiting == 0


def complete(running, prompt, **fields):
    return running.client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 4} | fields)


def test_several_texts_are_gone_on_with_as_each_alone(running):
    fields = {"temperature": 1, "seed": 3, "n": 2, "logprobs": 1}
    texts = ["a red", "what is in the picture?", "a red"]
    alone = [complete(running, text, **fields).json() for text in texts]
    tokens = [running.client.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in texts]
    for prompts in (texts, tokens):
        whole = complete(running, prompts, **fields).json()
        assert [choice["index"] for choice in whole["choices"]] == [*range(6)]
        for number, choice in enumerate(whole["choices"]):
            assert choice == alone[number // 2]["choices"][number % 2] | {"index": number}
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert whole["usage"][name] == sum(each["usage"][name] for each in alone)
    assert whole["choices"][0]["text"] != whole["choices"][2]["text"]
    pieces = events(complete(running, texts, stream=True, stream_options={"include_usage": True}, **fields))
    assert pieces[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    for choice in whole["choices"]:
        own = [each for piece in pieces for each in piece["choices"] if each["index"] == choice["index"]]
        assert "".join(each["text"] for each in own) == choice["text"]


def test_texts_without_a_seed_are_gone_on_with_in_different_ways(running):
    choices = complete(running, ["a red"] * 6, temperature=1, max_tokens=12).json()["choices"]
    assert len({choice["text"] for choice in choices}) > 1


@pytest.mark.parametrize(
    "prompt",
    [
        *([], [""], [[]], ["a", 5], [["a"]], [[5], [2**40]]),
        *(["a"] * 13, ["a" * 600_000] * 2),
        [[40] * 700] * 6,  # more tokens than may wait, so to ask again would never help
    ],
    ids=lambda prompt: str(prompt)[:20],
)
def test_prompts_that_are_none(running, prompt):
    refused = complete(running, prompt)
    assert refused.status_code == 400 and refused.json()["error"]["param"].startswith("prompt")
    assert not numbers(running)["internvl:num_requests_waiting"]


def test_prompts_may_wait_as_long_as_others_of_the_request_are_answered(running, monkeypatch):
    """Nine prompts in three rows: the last ones begin later than a request alone may."""
    step = running.server._reader.step
    monkeypatch.setattr(running.server._reader, "step", lambda most: (time.sleep(0.04), step(1))[1])
    service = running.server.service
    monkeypatch.setattr(service, "limits", dataclasses.replace(service.limits, first_seconds=0.8))
    answer = complete(running, [[40 + number] for number in range(9)], max_tokens=14, ignore_eos=True)
    assert answer.status_code == 200 and len(answer.json()["choices"]) == 9


def test_one_prompt_that_can_not_be_read_ends_the_others(running):
    assert complete(running, [[40, 41], [300_000]], max_tokens=200, ignore_eos=True).status_code == 400
    assert running.server.service.writing == 0 and not numbers(running)["internvl:num_requests_waiting"]


PICTURE = {"type": "image_url", "image_url": {"url": png(1)}}


@pytest.mark.parametrize(
    ("status", "param", "change"),
    [
        (404, "model", {"model": "other"}),
        (400, "messages", {"messages": []}),
        (400, "messages[0]", {"messages": [{"role": "tool", "content": "x"}]}),
        (400, "messages[0].content[0]", {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}),
        (400, "temperature", {"temperature": 2.1}),
        (400, "temperature", {"temperature": False}),
        (400, "top_p", {"top_p": "0.5"}),
        (400, "max_tokens", {"max_tokens": 0}),
        (400, "messages", {"max_tokens": 4000}),
        (400, "n", {"n": 17}),
        (400, "logit_bias.x", {"logit_bias": {"x": None}}),
        (400, "stop", {"stop": ["x"] * 17}),
        (400, "top_logprobs", {"top_logprobs": 2}),
        (400, "stream_options", {"stream_options": {"include_usage": True}}),
        (400, "tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (400, "functions", {"functions": [{"name": "f"}]}),
        (400, "guided_json", {"guided_json": {}}),
        (400, "surprise", {"surprise": 1}),
        (
            400,
            "response_format",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 3}}}},
        ),
        (400, "messages", {"messages": ask("x", "file:///etc/passwd")}),
        (400, "messages", {"messages": ask("x", "/etc/passwd")}),
        (400, "messages", {"messages": ask("x", "http://127.0.0.1/a.png")}),
        (400, "messages", {"messages": ask("x", "data:image/png;base64,AAAA")}),
        (400, None, {"stop_token_ids": list(range(20))}),
        (400, None, {"thresholds": {"absolute": 0.5}}),
    ],
)
def test_refusals(running, status, param, change):
    response = running.client.post(PATH, json={"messages": ask("what?"), "max_tokens": 2} | change)
    error = response.json()["error"]
    assert response.status_code == status and error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param and error["type"] == "invalid_request_error" and len(error["message"]) < 400


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"\xff", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"messages": "\\ud800"}', {}, 400),
        (b'{"temperature": NaN}', {}, 400),
        (b"{}", {"content-type": "text/plain"}, 400),
        (b"{}", {"host": "evil.example"}, 403),
    ],
)
def test_bodies_that_are_none(running, content, headers, status):
    headers = {"content-type": "application/json"} | headers
    response = running.client.post(PATH, content=content, headers=headers)
    assert response.status_code == status and set(response.json()) == {"error"}


def test_a_large_body_is_refused_by_its_head(running):
    host, port = running.client.base_url.host, running.client.base_url.port
    with socket.create_connection((host, port), 10) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 99999999999\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_null_is_as_if_it_were_not_there(running):
    fields = dict.fromkeys(("stop", "seed", "tools", "functions", "response_format", "logit_bias", "n", "user"))
    assert post(running, ask("what?"), **fields)["choices"] == post(running, ask("what?"))["choices"]


def test_what_operators_ask(running):
    assert running.client.get("/health").json() == {"status": "ready"}
    assert running.client.head("/metrics").status_code == 200
    assert [model["id"] for model in running.client.get("/v1/models").json()["data"]] == ["small", "alias"]
    assert running.client.get("/v1/models/alias").json()["max_model_len"] == 768
    for path in ("/v1/nothing", "/v1/models/", "/v1/models/other", "/health/"):
        response = running.client.get(path)
        assert response.status_code == 404 and response.json()["error"]["type"] == "invalid_request_error"
    page = running.client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]


def numbers(running):
    lines = running.client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}


def test_numbers_by_the_names_that_dashboards_know(running):
    before = numbers(running)
    for _ in range(2):
        post(running, ask("what?", png(21)), max_tokens=5, ignore_eos=True)
    after = numbers(running)
    rose = lambda name: after[f"internvl:{name}"] - before[f"internvl:{name}"]
    for name in ("queue_time_seconds", "prefill_time_seconds", "time_per_output_token_seconds"):
        assert rose(f"request_{name}_count") == 2 and rose(f"request_{name}_sum") >= 0
    assert rose("iteration_tokens_total_sum") >= 2 * 5 and rose("iteration_tokens_total_count") > 2
    assert rose("num_preemptions_total") == 0
    tiles = rose("mm_cache_queries_total")
    assert tiles and rose("mm_cache_hits_total") == tiles / 2
    spent = rose("request_queue_time_seconds_sum") + rose("request_prefill_time_seconds_sum")
    assert 0 < spent <= rose("time_to_first_token_seconds_sum")


def test_rows_are_free_when_clients_leave(running, monkeypatch):
    """At the next step, long before the answers would have ended by themselves."""
    reader = running.server._reader
    step = reader.step

    def slow(most):
        time.sleep(0.1)
        return step(1)

    monkeypatch.setattr(reader, "step", slow)
    before = numbers(running)["internvl:request_aborted_total"]
    body = {"messages": ask("go on", png(9)), "max_tokens": 300, "ignore_eos": True, "n": 2, "stream": True}
    for count in (1, 3):
        with running.client.stream("POST", PATH, json=body) as response:
            for _, _ in zip(range(count), response.iter_lines()):
                pass
    end = time.monotonic() + 10  # 300 steps take 30
    while numbers(running)["internvl:num_requests_running"] or numbers(running)["internvl:num_requests_waiting"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert numbers(running)["internvl:request_aborted_total"] == before + 2
    monkeypatch.undo()
    assert post(running, ask("what?"))["usage"]["completion_tokens"] == 6


def test_too_many_are_told_when_to_come_again(running):
    body = {"messages": ask("go on"), "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        responses = list(pool.map(lambda _: running.client.post(PATH, json=body), range(40)))
    answered = [response.json() for response in responses if response.status_code == 200]
    refused = [response for response in responses if response.status_code != 200]
    assert len({json.dumps(answer["choices"]) for answer in answered}) == 1
    assert answered and refused and {response.status_code for response in refused} == {429}
    assert all(1 <= int(response.headers["retry-after"]) <= 60 for response in refused)


def test_a_server_that_is_to_end_finishes_what_it_has_begun(structure, params, processor, monkeypatch, caplog):
    caplog.set_level("INFO", "internvl_jax.requests")
    ending = Running(bind(structure[0], params), processor)
    step = ending.server._reader.step
    monkeypatch.setattr(ending.server._reader, "step", lambda most: (time.sleep(0.05), step(1))[1])
    body = {"messages": ask("go on"), "max_tokens": 40, "ignore_eos": True, "stream": True, "temperature": 0}
    with ending.client.stream("POST", PATH, json=body | {"stream_options": {"include_usage": True}}) as response:
        lines = response.iter_lines()
        first = next(lines)
        ending.server._http.handle_exit(signal.SIGTERM, None)
        with httpx.Client(base_url=ending.url) as other:
            for _ in range(3):
                refused = other.post(PATH, json=body)
                assert refused.status_code == 503 and refused.json()["error"]["code"] == "stopping"
            assert (other.get("/ready").status_code, other.get("/health").status_code) == (503, 200)
        whole = [line for line in (first, *lines) if line]
    assert whole[-1] == "data: [DONE]"
    assert json.loads(whole[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 40
    ending.join()
    told = [json.loads(record.message) for record in caplog.records if record.name == "internvl_jax.requests"]
    assert [line.get("more", 1) for line in told if line.get("code") == "stopping"] == [1, 2]  # none is left untold


def test_a_flood_of_refusals_is_a_few_lines_of_the_log(running, caplog, monkeypatch):
    monkeypatch.setattr(refusing, "_SECONDS", 0.3)
    caplog.set_level("INFO", "internvl_jax.requests")
    began = time.monotonic()
    refused = [running.client.post("/detokenize", json={"tokens": "SECRET"}) for _ in range(20)]
    running.client.get("/v1/models/SECRET", headers={"authorization": "Bearer SECRET"})
    lines = lambda: [json.loads(record.message) for record in caplog.records if record.name == "internvl_jax.requests"]
    own = lambda: [line for line in lines() if line["path"] == "/detokenize"]
    end = time.monotonic() + 10
    while sum(line.get("more", 1) for line in own()) < 20:
        assert time.monotonic() < end
        time.sleep(0.02)
    first, *more = own()
    assert (first["refused"], first["id"]) == (400, refused[0].headers["x-request-id"]) and first["seconds"] >= 0
    assert more and len(more) < 2 + (time.monotonic() - began) / 0.3 and not any("id" in line for line in more)
    assert len({each.headers["x-request-id"] for each in refused}) == 20
    assert "SECRET" not in caplog.text


def test_features_of_pictures_take_what_they_may(running, structure, params, processor):
    """By default those of 1,024 tiles are kept, since small models took a gigabyte, and those of a request in any case,
    or large models would not start.
    """
    assert len(running.server._reader.engine.tiles.pool_GPD) == 1024
    one = ((1, 64),)
    assert ladders(one, tiles=300).least_tiles == 300 and ladders(one, feature_bytes=9, tiles=300).least_tiles == 1
    few = ladders(one, feature_bytes=200 * 4 * 40 * 4)
    with pytest.raises(InputError, match="may have 256 tiles, but the features of 200 are kept"):
        Running(bind(structure[0], params), processor, few)


def test_nobody_waits_while_a_model_is_loaded():
    with listen("127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        for _ in range(2):  # who serves next has the same socket
            with (
                pytest.raises(SystemExit),
                loading(listening, ApiKeys(()), LIMITS),
                httpx.Client(base_url=url) as client,
            ):
                for path in ("/health", "/ready"):
                    probe = client.get(path)
                    assert (probe.status_code, probe.json()) == (503, {"status": "starting"})
                for refused in (client.get("/"), client.get("/v1/models"), client.post(PATH, json={})):
                    error = refused.json()["error"]
                    assert (refused.status_code, error["code"], error["type"]) == (503, "starting", "server_error")
                    assert "the model is being loaded" in error["message"] and int(refused.headers["retry-after"])
                assert client.get("/", headers={"host": "evil.example"}).status_code == 403
                raise SystemExit(143)


def test_who_sends_no_http_while_a_model_is_loaded_is_one_line_of_the_log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "filters", [])
    monkeypatch.setattr(http_server._NO_WORDS, "_told", {})
    with listen("127.0.0.1", 0) as listening, loading(listening, ApiKeys(()), LIMITS):
        for _ in range(5):
            with socket.create_connection(listening.getsockname(), 10) as connection:
                connection.sendall(b"SECRET\r\n\r\n")
                assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert len([record for record in caplog.records if "Invalid HTTP" in record.message]) == 1


def test_a_vision_server_tells_that_it_starts():
    with listen("127.0.0.1", 0) as health:

        def load():
            with httpx.Client(base_url=f"http://127.0.0.1:{health.getsockname()[1]}") as client:
                for path in ("/health", "/ready"):
                    probe = client.get(path)
                    assert (probe.status_code, probe.json()) == (503, {"status": "starting"})
                assert client.get("/metrics").status_code == 200
            raise InputError("there is no model")

        with pytest.raises(InputError, match="there is no model"):
            serve_vision(load, "127.0.0.1:0", None, health, print)


def test_nothing_was_compiled_on_the_way(running):
    before = running.num_compiled
    post(running, ask("what?", png(11, 20, 90)), n=3, temperature=1, repetition_penalty=1.2, logprobs=True)
    post(running, ask("what " * 30), max_tokens=50, ignore_eos=True)
    assert running.num_compiled == before
