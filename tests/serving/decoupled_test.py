"""The two halves of a model in servers of their own: answers are those of the whole, text never waits for pictures."""

import contextlib
import dataclasses
import functools
import threading
import time

import pytest

from internvl_jax.inference import Thresholds, VisionTower, chat, fingerprint, weights_digest
from internvl_jax.models import LanguageHalf, VisionHalf
from internvl_jax.serving import servers
from internvl_jax.serving.dvd import VisionServer
from internvl_jax.serving.dvd.dvd_settings import VisionClientLimits
from internvl_jax.serving.dvd.vision_client import VisionClient
from tests.inference.engine.vision_tower_test import half
from tests.serving.conftest import LIMITS, Running
from tests.serving.server_test import PATH, ask, numbers, png, post

SECRET = b"a secret of sixteen bytes"


@pytest.fixture(scope="module")
def tower(flash_model):
    return VisionTower(half(VisionHalf, flash_model), (1, 2, 4, 8))


@pytest.fixture(scope="module")
def vision(flash_model, processor, tower):
    """Starts vision servers."""
    config, weights = (
        fingerprint(flash_model, processor).encode(),
        weights_digest(half(VisionHalf, flash_model)).encode(),
    )

    @contextlib.contextmanager
    def started(address="127.0.0.1:0", encode=tower.encode):
        server = VisionServer(encode, flash_model.config, address, model=config, weights=weights, secret=SECRET)
        with server:
            yield server

    return started


@pytest.fixture(scope="module")
def language(flash_model, processor, vision):
    """A language server, and the one vision server that it has at first."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(vision())
        address = first.address.removeprefix("tcp://")
        limits = dataclasses.replace(LIMITS, waiting_requests=64)
        given = {"vision": (address,), "secret": SECRET, "limits": limits}
        with pytest.MonkeyPatch.context() as patch:
            hasty = functools.partial(VisionClient, limits=VisionClientLimits(absent=0.5))
            patch.setattr(servers, "VisionClient", hasty)
            server = Running(half(LanguageHalf, flash_model), processor, **given)
        stack.callback(server.close)
        yield server, first, stack


def test_answers_are_those_of_the_whole_model(language, flash_model, processor):
    server = language[0]
    for thresholds in ({}, {"relative": 1.0}, {"relative": 0.5}, {"absolute": 1.0}):
        messages = ask("what is it?", png(3), png(4, 30, 90))
        wanted = chat(flash_model, processor, messages, max_new_tokens=6, thresholds=Thresholds(**thresholds))
        answer = post(server, messages, thresholds=thresholds, return_tiles=True)
        assert (answer["choices"][0]["message"]["content"] or "") == wanted
        pictures = answer["internvl"]["pictures"]
        assert [len(picture["compressed"]) for picture in pictures] == [3, 4]
        tokens = sum(picture["tokens"] for picture in pictures)
        assert tokens == answer["usage"]["prompt_tokens_details"]["multimodal_tokens"]["image"]
        assert all(0 <= probability <= 1 for picture in pictures for probability in picture["probability"])


def test_equal_pictures_are_sent_once(language):
    server = language[0]
    before = numbers(server)
    for text in ("one", "two"):
        post(server, ask(text, png(21)))
    after = numbers(server)
    rise = {
        name: after[f"internvl:{name}_total"] - before[f"internvl:{name}_total"]
        for name in ("mm_cache_queries", "mm_cache_hits")
    }
    assert rise == {"mm_cache_queries": 6, "mm_cache_hits": 3}


def test_text_goes_on_without_a_vision_server_and_pictures_come_back(language, vision):
    server, first, stack = language
    address = first.address.removeprefix("tcp://")
    first.stop()
    text = post(server, ask("only words"))
    assert text["choices"]
    refused = server.client.post(PATH, json={"messages": ask("what?", png(31)), "max_tokens": 2})
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "vision_unavailable"
    assert server.client.get("/health").json() == {"status": "ready", "vision": "unavailable"}
    stack.enter_context(vision(address))
    end = time.monotonic() + 10
    while server.client.get("/health").json()["vision"] != "ok":
        assert time.monotonic() < end
        time.sleep(0.05)
    assert post(server, ask("what?", png(31)))["choices"]


def test_a_slow_tower_holds_up_no_other_answer(language, vision, tower, flash_model, processor):
    begun, go_on = threading.Event(), threading.Event()

    def encode(tiles_GHWC):
        begun.set()
        go_on.wait(60)
        return tower.encode(tiles_GHWC)

    with vision(encode=encode) as server:
        given = {"vision": (server.address.removeprefix("tcp://"),), "secret": SECRET}
        other = Running(half(LanguageHalf, flash_model), processor, **given)
        try:
            picture = threading.Thread(target=post, args=(other, ask("what?", png(41))))
            picture.start()
            assert begun.wait(60)
            assert post(other, ask("words"), max_tokens=20, ignore_eos=True)["usage"]["completion_tokens"] == 20
            assert picture.is_alive()
            go_on.set()
            picture.join(60)
            assert not picture.is_alive()
        finally:
            go_on.set()
            other.close()
