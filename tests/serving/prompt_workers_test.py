"""Prompts made in other processes equal those made here, and what a request brings costs no other one anything."""

import asyncio
import base64
import dataclasses
import io
import logging
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from internvl_jax import data
from internvl_jax.data import PromptSettings
from internvl_jax.errors import InputError
from internvl_jax.serving import prompt_workers
from internvl_jax.serving.contents import admit
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.prompt_workers import PromptWorkers
from internvl_jax.serving.refusals import Refusal
from tests.serving import troubled

IMAGE = data.ImageConfig(14, 3, 1, 6, True, False, 1_000_000)
LIMITS = Limits(prompt_seconds=30.0, tiles=64)
SHORT = dataclasses.replace(LIMITS, prompt_seconds=2.5)
TEXT = "what is this? one red square and two blue circles"


@pytest.fixture(scope="module")
def qwen():
    return troubled.TroubledProcessor(IMAGE, data.train_bpe([TEXT] * 3, 320), data.get_template("internvl2_5"))


@pytest.fixture(scope="module")
def gpt_oss(gpt_oss_files):
    tokenizer = data.Tokenizer.load(gpt_oss_files)
    return troubled.TroubledProcessor(IMAGE, tokenizer, data.get_template("internvl3_5_gpt_oss"))


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def workers(loop, qwen):
    """Two of them, which every test leaves alive."""
    made = PromptWorkers(qwen, 2, LIMITS)
    loop.run(made.__aenter__())
    yield made
    loop.run(made.__aexit__())


@pytest.fixture(scope="module")
def channels(loop, gpt_oss):
    made = PromptWorkers(gpt_oss, 1, LIMITS)
    loop.run(made.__aenter__())
    yield made
    loop.run(made.__aexit__())


def picture(width, height, seed=0, kind="PNG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def url(encoded):
    return "data:image/png;base64," + base64.b64encode(encoded).decode()


def image(source, **options):
    return {"type": "image_url", "image_url": {"url": source if isinstance(source, str) else url(source), **options}}


def user(*parts):
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


def said(word):
    return [{"role": "user", "content": word}]


def same(found, expected):
    return (
        np.array_equal(found.tokens_T, expected.tokens_T)
        and np.array_equal(found.tiles_GHWC, expected.tiles_GHWC)
        and (found.tokens_T.dtype, found.tiles_GHWC.dtype) == (np.int32, np.uint8)
        and found.image_token_counts == expected.image_token_counts
    )


TALKS = [
    said(TEXT),
    user(TEXT, image(picture(40, 30)), "and this?", image(picture(90, 20, 1, "JPEG"))),
    [{"role": "system", "content": "be brief"}, *user(image(picture(20, 20))), {"role": "assistant", "content": "ok"}]
    + said("<|im_end|> then?"),
]


@pytest.mark.parametrize("talk", TALKS)
def test_a_prompt_equals_the_processors(loop, workers, channels, qwen, gpt_oss, talk):
    assert same(loop.run(workers.prompt(talk)), qwen(talk))
    assert same(loop.run(channels.prompt(talk)), gpt_oss(talk))


def test_many_at_once_keep_apart(loop, workers, qwen):
    talks = [user(f"number {n}", image(picture(20 + n, 30, n))) for n in range(12)]

    async def all_of_them():
        return await asyncio.gather(*map(workers.prompt, talks))

    assert all(same(found, qwen(talk)) for found, talk in zip(loop.run(all_of_them()), talks, strict=True))


@pytest.mark.parametrize("source", [picture(90, 20), url(picture(90, 20))])
def test_fetched_bytes_are_a_picture_too(loop, workers, qwen, source):
    part = {"type": "image_url", "image_url": {"url": source}}
    assert same(loop.run(workers.prompt(user("see", part))), qwen(user("see", image(picture(90, 20)))))


def film(encoded, **options):
    url = "data:video/mp4;base64," + base64.b64encode(encoded).decode()
    return {"type": "video_url", "video_url": {"url": url, **options}}


def test_a_video_becomes_the_same_prompt(loop, workers, qwen, golden):
    encoded = (golden / "video/videos/clip.mp4").read_bytes()
    talk = user("see", film(encoded, num_frames=5), image(picture(40, 30)), film(encoded, fps=1, clip=[1, 3]))
    found = loop.run(workers.prompt(talk))
    assert same(found, qwen(talk)) and len(found.image_token_counts) == 8
    with pytest.raises(Refusal, match="65 tiles, more than the limit of 64"):
        loop.run(workers.prompt(user("see", film(encoded, num_frames=65))))
    with pytest.raises(Refusal, match=r"part 1 of message 0: video .* may be truncated or broken"):
        loop.run(workers.prompt(user("see", film(encoded[:3000]))))


@pytest.mark.parametrize(
    ("options", "request_limit", "limit"),
    [
        ({}, None, 6),
        ({"detail": "auto"}, None, 6),
        ({"detail": "high"}, None, 6),
        ({"detail": "low"}, None, 3),
        ({"detail": "low", "max_dynamic_patch": 5}, None, 5),
        ({"detail": "low"}, 2, 2),
        ({"max_dynamic_patch": 9}, 2, 9),
        ({}, 9, 9),
    ],
)
def test_who_says_how_many_tiles_a_picture_has(loop, workers, qwen, options, request_limit, limit):
    wide = picture(140, 14)
    talk = user("see", image(wide, **options), image(picture(140, 15)))
    found = loop.run(workers.prompt(talk, settings=PromptSettings(max_dynamic_patch=request_limit)))
    own = len(qwen(user(image(wide)), max_dynamic_patch=limit).tiles_GHWC)
    other = len(qwen(user(image(picture(140, 15))), max_dynamic_patch=request_limit).tiles_GHWC)
    assert found.image_token_counts == (3 * own, 3 * other)
    assert own == limit + (limit > 1)


ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
SYSTEM = "You are an AI assistant that rigorously follows"


@pytest.mark.parametrize(
    ("thinking", "end"),
    [
        ("auto", "<|im_start|>assistant\n"),
        ("on", "<|im_start|>assistant\n<think>\n"),
        ("off", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_thinking_with_tags(loop, workers, qwen, thinking, end):
    settings = PromptSettings(thinking)
    prompt = lambda talk: qwen.tokenizer.decode(
        loop.run(workers.prompt(talk, settings=settings)).tokens_T, skip_special=False
    )
    assert prompt(said("why?")).endswith("why?<|im_end|>\n" + end)
    assert (SYSTEM in prompt(said("why?"))) == (thinking == "on")
    own = prompt([{"role": "system", "content": "own words"}, *said("why?")])
    assert own == f"<|im_start|>system\nown words<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n{end}"
    assert qwen.tokenizer.decode(qwen.begin(settings.begun)) == end.removeprefix("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("thinking", "end", "answer"),
    [
        ("auto", "<|start|>assistant", f"{FINAL}yes"),
        (
            "on",
            "<|start|>assistant<|channel|>analysis<|message|>",
            "hm<|end|><|start|>assistant<|channel|>final<|message|>yes",
        ),
        ("off", f"<|start|>assistant{FINAL}", "yes"),
    ],
)
def test_thinking_with_channels(loop, channels, gpt_oss, thinking, end, answer):
    settings = PromptSettings(thinking)
    tokens_T = loop.run(channels.prompt(said("why?"), settings=settings)).tokens_T
    text = gpt_oss.tokenizer.decode(tokens_T, skip_special=False)
    assert text.endswith("why?<|end|>" + end)
    assert (SYSTEM in text) == (thinking == "on")
    # How the answer is read back, from what the prompt has of it.
    stream = gpt_oss.decode_stream()
    begun, rest = gpt_oss.begin(settings.begun), gpt_oss.tokenizer.encode_special(answer)
    assert tokens_T[len(tokens_T) - len(begun) :].tolist() == begun
    read = "".join(map(stream.feed, [*begun, *rest])) + stream.finish()
    assert data.split_thinking(read) == ("hm" if thinking == "on" else "", "yes")


def test_effort_is_for_templates_that_know_it(loop, channels, workers, gpt_oss):
    for effort in ("low", "high"):
        settings = PromptSettings(effort=effort)
        found = loop.run(channels.prompt(said("why?"), settings=settings))
        assert same(found, gpt_oss.with_reasoning(effort)(said("why?")))
    with pytest.raises(Refusal, match="reasoning effort 'high' is unknown") as refused:
        loop.run(workers.prompt(said("why?"), settings=PromptSettings(effort="high")))
    assert (refused.value.status, refused.value.param) == (400, "reasoning_effort")


@pytest.mark.parametrize("wrong", [{"thinking": "maybe"}, {"max_dynamic_patch": 0}, {"max_dynamic_patch": 10**8}])
def test_settings_have_bounds(wrong):
    with pytest.raises(InputError, match="must be"):
        PromptSettings(**wrong)


def not_admitted(talk, limits=LIMITS):
    with pytest.raises(Refusal) as refused:
        admit(talk, PromptSettings(), IMAGE, limits)
    assert refused.value.status == 400 and len(refused.value.message) < 300
    return refused.value.message


def test_sizes_are_bounded_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr(base64, "b64decode", None)
    monkeypatch.setattr(Image, "open", None)
    small = image("data:image/png;base64,AAAA")
    assert re.search(r"more than 64 pictures", not_admitted(user(*[small] * 10_000)))
    long = image("data:image/png;base64," + "A" * 200_000_000)
    assert re.search(r"150000000 bytes.* 20971520", not_admitted(user(long)))
    del long
    text = "x" * 10**8
    assert re.search(r"100000000 characters.* 1048576", not_admitted(said(text)))
    assert re.search(r"100000000 characters.* 1048576", not_admitted(user(text)))
    half = "x" * (1 << 19)
    assert "1572864 characters" in not_admitted([*said(half), *user(half), *user(half)])
    many = image(picture(9, 9), max_dynamic_patch=10**8)
    assert re.search(r"max_dynamic_patch of part 0 of message 0 is 100000000; it .* 4,096", not_admitted(user(many)))
    assert re.search(
        r"20971521 bytes.* 20971520", not_admitted(user({**image("x"), "image_url": {"url": bytes(20 * 2**20 + 1)}}))
    )


def bomb(width, height):
    """A PNG of a few bytes that says it has so many pixels."""
    chunk = lambda name, body: struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


SMALL = [image(picture(5, 5, k), max_dynamic_patch=4096) for k in range(5)]


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([image(bomb(60_000, 60_000))], "60000 x 60000 pixels.* 1000000"),
        ([image(bomb(30_000, 30_000))], "30000 x 30000 pixels.* 1000000"),
        ([image(bomb(1001, 1000))], "1001 x 1000 pixels.* 1000000"),
        ([image(bomb(60_000_000, 1))], "60000000 x 1 pixels.* 65535"),
        ([*SMALL, image(picture(1000, 10), max_dynamic_patch=100)], "106 tiles.* 64"),
    ],
)
def test_headers_are_bounded_before_pictures_are_decoded(loop, workers, parts, says):
    with pytest.raises(Refusal, match=says) as refused:
        loop.run(workers.prompt(user("see", *parts)))
    assert refused.value.status == 400


ADDRESSES = [
    *("file:///etc/passwd", "/etc/passwd", "x.png", "", "http://a.b/c.png", "https://a.b/c.png", "ftp://a/b"),
    *("data:text/html;base64,AA", "data:image/png,AA", "DATA:image/png;base64,AA", None, 7, ["x"]),
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_only_data_urls_are_pictures(address):
    assert "data URL" in not_admitted(user({"type": "image_url", "image_url": {"url": address}}))
    assert "data URL" in not_admitted(user({"type": "image_url", "image_url": address}))


@pytest.mark.parametrize(
    "talk",
    [
        *([], {}, None, "hi", ["hi"], [{"role": "tool", "content": "x"}], [{"role": "user"}]),
        [{"role": "user", "content": 5}],
        user({"type": "image", "image": "/etc/passwd"}),
        user({"type": "image", "path": "/etc/passwd"}),
        user({"type": "text", "text": 5}),
        user({"type": "text"}, {"type": "video_url"}),
        user(image(picture(5, 5), detail="lots")),
        *(user(image(picture(5, 5), max_dynamic_patch=wrong)) for wrong in (0, -1, 4097, 2.0, True, "6", "x" * 99)),
    ],
)
def test_what_is_no_message_is_refused(talk):
    not_admitted(talk)


@pytest.mark.parametrize(
    ("talk", "says"),
    [
        (user("see", image(b"no picture")), "part 1 of message 0: .* is not a picture"),
        (user("see", image("data:image/png;base64,???")), "base64"),
        (user(image(picture(40, 40)[:200])), "truncated or broken"),
        ([{"role": "assistant", "content": "x"}], "last message must be the user's"),
        ([{"role": "system", "content": [image(picture(5, 5))]}, *said("x")], "only user messages may have pictures"),
        (said("half \ud83d"), "surrogate"),
    ],
)
def test_what_the_processor_refuses_is_told(loop, workers, talk, says):
    before = workers.pids
    with pytest.raises(Refusal, match=says) as refused:
        loop.run(workers.prompt(talk))
    assert (refused.value.status, refused.value.param) == (400, "messages")
    assert workers.pids == before


async def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


TROUBLES = {
    troubled.KILLED: "ended over them",
    troubled.ENDED: "ended over them",
    troubled.FAULTY: "ended over them",
    troubled.STUCK: r"longer than 2\.5 s",
}


@pytest.mark.parametrize(("word", "says"), TROUBLES.items())
def test_a_worker_in_trouble_costs_its_own_request_alone(loop, qwen, word, says, caplog, capfd):
    secret = "the secret of this request, which is nobody else's"

    async def scene():
        async with PromptWorkers(qwen, 2, SHORT) as workers:
            bad = asyncio.create_task(workers.prompt([*said(secret), *said(word)]))
            good = [asyncio.create_task(workers.prompt(said(f"number {n}"))) for n in range(6)]
            answers = await asyncio.gather(*good)
            with pytest.raises(Refusal, match=says) as refused:
                await bad
            await until(lambda: len(workers.pids) == 2)
            return refused.value, answers, await asyncio.gather(*(workers.prompt(said("then")) for _ in range(2)))

    refused, answers, after = loop.run(scene())
    assert refused.status == 400 and refused.param == "messages"
    assert all(same(found, qwen(said(f"number {n}"))) for n, found in enumerate(answers))
    assert all(same(found, qwen(said("then"))) for found in after)
    assert secret not in refused.message + caplog.text + "".join(capfd.readouterr())


def test_a_fault_of_a_worker_is_told_without_the_request(loop, qwen, capfd):
    """Where it happened stands on stderr, what the error says doesn't: that may be the request's."""

    async def scene():
        async with PromptWorkers(qwen, 1, LIMITS) as workers:
            with pytest.raises(Refusal, match="ended over them"):
                await workers.prompt(said(troubled.FAULTY))

    loop.run(scene())
    told = capfd.readouterr().err
    assert "troubled.py" in told and "RuntimeError" in told
    assert "repeats the request: [" not in told


def test_a_worker_killed_in_the_middle(loop, qwen):
    """With one worker: its request is refused, and the one that waited gets the next process."""

    async def scene():
        async with PromptWorkers(qwen, 1, LIMITS) as workers:
            (pid,) = workers.pids
            bad = asyncio.create_task(workers.prompt(said(troubled.STUCK)))
            good = asyncio.create_task(workers.prompt(said("next")))
            await asyncio.sleep(0.3)
            assert workers.waiting == 1 and not bad.done()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(Refusal, match="ended over them"):
                await bad
            answer = await good
            # One that has nothing to do is replaced without a word.
            (pid,) = workers.pids
            os.kill(pid, signal.SIGKILL)
            await until(lambda: pid not in workers.pids)
            return answer, await workers.prompt(said("idle"))

    answer, after = loop.run(scene())
    assert same(answer, qwen(said("next"))) and same(after, qwen(said("idle")))


def test_a_cancelled_request_that_goes_on_ends_its_worker(loop, workers, qwen):
    async def scene():
        before = set(workers.pids)
        stuck = [asyncio.create_task(workers.prompt(said(troubled.STUCK))) for _ in range(2)]
        waits = asyncio.create_task(workers.prompt(said("gives up")))
        await asyncio.sleep(0.2)
        for task in (*stuck, waits):
            task.cancel()
        await asyncio.wait([*stuck, waits])
        assert all(task.cancelled() for task in (*stuck, waits)) and workers.waiting == 0
        answers = await asyncio.gather(*(workers.prompt(said(f"after {n}")) for n in range(4)))
        assert not before & set(workers.pids)
        return answers

    start = time.monotonic()
    assert all(same(found, qwen(said(f"after {n}"))) for n, found in enumerate(loop.run(scene())))
    assert time.monotonic() - start < 20


def test_a_cancelled_request_that_is_nearly_done_keeps_its_worker(loop, workers, qwen):
    async def scene():
        before = set(workers.pids)
        for n in range(6):
            task = asyncio.create_task(workers.prompt(said(f"leaves {n}")))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        answer = await workers.prompt(said("stays"))
        assert before == set(workers.pids)
        return answer

    assert same(loop.run(scene()), qwen(said("stays")))


def test_a_worker_has_so_much_memory(loop, qwen):
    """What decoding takes beyond it is refused, and the next request is answered."""
    config = dataclasses.replace(IMAGE, max_pixels=10**8)
    greedy = dataclasses.replace(qwen, image_config=config)
    limits = dataclasses.replace(LIMITS, prompt_memory=150 << 20, prompt_seconds=20.0)
    large = io.BytesIO()
    Image.new("RGB", (7000, 7000)).save(large, "PNG")

    async def scene():
        async with PromptWorkers(greedy, 1, limits) as workers:
            with pytest.raises(Refusal, match="bytes of memory") as refused:
                await workers.prompt(user(image(large.getvalue())))
            return refused.value, await workers.prompt(said("next"))

    refused, after = loop.run(scene())
    assert refused.status == 400 and same(after, qwen(said("next")))


LIAR = """
import multiprocessing.connection, sys, time
link = multiprocessing.connection.Connection(int(sys.argv[1]))

def reply(text, *blocks):
    for block in (text.encode(), *blocks):
        link.send_bytes(block)

link.recv_bytes()
reply('{"refused": null}')
link.recv_bytes()
LIE
time.sleep(60)
"""


@pytest.mark.parametrize(
    "lie",
    [
        "reply('no JSON')",
        "reply('9' * (2 << 20))",
        """link.send_bytes(b'{"refused": "\\xff"}')""",
        """reply('{"refused": null, "tokens": 9, "more": 1}')""",
        "link.send(print)",  # a pickle
        """reply('{"refused": null, "tokens": 3}', bytes(8), b"")""",
        """reply('{"refused": null, "tokens": 1, "tiles": -1}', bytes(4), b"")""",
        """reply('{"refused": null, "tokens": 1}', bytes(4), bytes(99))""",
        """reply('{"refused": null, "tokens": 9}'); link._send(b"\\xff" * 4 + b"\\x7f" * 999)""",
        """reply('{"refused": null, "tokens": 9}'); link._send(bytes(3) + b"$")""",  # and no more
    ],
)
def test_a_worker_that_was_taken_over_gains_nothing(loop, qwen, monkeypatch, lie):
    """It refuses its own request; sizes are believed up to what a request may have, and nothing is unpickled."""
    honest = prompt_workers._MAIN
    monkeypatch.setattr(prompt_workers, "_MAIN", LIAR.replace("LIE", lie))

    async def scene():
        async with PromptWorkers(qwen, 1, SHORT) as workers:
            monkeypatch.setattr(prompt_workers, "_MAIN", honest)
            with pytest.raises(Refusal) as refused:
                await workers.prompt(said("hi"))
            return refused.value, await workers.prompt(said("next"))

    refused, after = loop.run(scene())
    assert refused.status == 400 and same(after, qwen(said("next")))


def test_a_worker_that_does_not_come_up_is_told(loop, qwen, monkeypatch, capfd):
    monkeypatch.setattr(prompt_workers, "_MAIN", "raise SystemExit(3)")

    async def scene():
        async with PromptWorkers(qwen, 2, LIMITS):
            pass

    with pytest.raises(InputError, match="could not be started"):
        loop.run(scene())
    with pytest.raises(InputError, match="at least one"):
        PromptWorkers(qwen, 0, LIMITS)


def running(pid):
    try:
        return "State:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_worker_outlives_its_parent_no_longer_than_its_order(qwen, tmp_path):
    """A parent that is killed leaves nothing behind: not idle workers, and not those that are stuck."""
    script = f"""
import asyncio
from internvl_jax import data
from internvl_jax.serving.contents import admit
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.prompt_workers import PromptWorkers
from tests.serving import troubled
tokenizer, template = data.train_bpe(["{TEXT}"], 300), data.get_template("internvl2_5")
processor = troubled.TroubledProcessor(data.{IMAGE!r}, tokenizer, template)

async def main():
    async with PromptWorkers(processor, 2, Limits(prompt_seconds=0.5)) as workers:
        task = asyncio.create_task(workers.prompt([{{"role": "user", "content": "{troubled.STUCK}"}}]))
        await asyncio.sleep(0.1)
        print(*workers.pids, flush=True)
        __import__("os").kill(__import__("os").getpid(), 9)

asyncio.run(main())
"""
    found = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=60)
    assert found.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in found.stdout.split()]
    assert len(pids) == 2
    asyncio.run(until(lambda: not any(map(running, pids))))


def test_no_message_repeats_a_request(loop, workers, caplog):
    """No 41 characters of what was sent stand in an error."""
    caplog.set_level(logging.DEBUG)
    secret = "".join(np.random.default_rng(1).choice(list("abcdefghijklmnopqrstuvwxyz "), 300))
    packed = base64.b64encode(secret.encode()).decode()
    talks = [
        user(image(f"data:image/png;base64,{packed}")),
        user(image(f"data:image/png;base64,{packed}?")),
        user(image(f"https://{secret}")),
        user(image(f"data:image/{secret};base64,AA")),
        user(image(picture(5, 5), detail=secret)),
        user(image(picture(5, 5), max_dynamic_patch=secret)),
        user({"type": secret, secret: secret}),
        [{"role": secret, "content": secret}],
        said(secret + "\ud83d"),
        said(secret) + [{"role": "assistant", "content": secret}],
    ]
    for talk in talks:
        with pytest.raises(Refusal) as refused:
            loop.run(workers.prompt(talk))
        told = refused.value.message + caplog.text
        for text in (secret, packed):
            assert not any(text[k : k + 41] in told for k in range(len(text) - 40)), told
