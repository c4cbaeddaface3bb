"""Videos of requests: from the body to what a worker gets, bounded while they are still text."""

import base64
import dataclasses

import pydantic
import pytest

from internvl_jax import data
from internvl_jax.data import PromptSettings
from internvl_jax.serving.contents import admit
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.orders import conversation
from internvl_jax.serving.refusals import Refusal
from internvl_jax.serving.schema import ChatRequest, explained

CONFIG = data.ImageConfig(14, 3, 1, 6, True, False, 1_000_000)
URL = "data:video/mp4;base64," + base64.b64encode(bytes(300)).decode()


def body(*parts):
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]}


def film(url=URL, **options):
    return {"type": "video_url", "video_url": {"url": url, **options}}


def admitted(given, limits=None):
    request = ChatRequest.model_validate(given)
    (message,) = admit(conversation(request.messages), PromptSettings(), CONFIG, limits or Limits())
    return message["content"]


@pytest.mark.parametrize("options", [{}, {"num_frames": 3}, {"fps": 0.5}, {"fps": 2, "clip": [1, 2.5]}])
def test_a_video_passes_with_its_wishes(options):
    assert admitted(body(film(**options))) == [film(**options), {"type": "text", "text": "?"}]


@pytest.mark.parametrize(
    "options", [{"num_frames": 0}, {"num_frames": True}, {"fps": 0}, {"clip": [1]}, {"clip": [-1, 2]}, {"frames": 3}]
)
def test_a_wish_that_cannot_be_is_refused_by_name(options):
    with pytest.raises(pydantic.ValidationError) as error:
        admitted(body(film(**options)))
    assert f"video_url.{next(iter(options))}" in explained(error.value.errors()).message


@pytest.mark.parametrize("url", ["x", "/etc/passwd", "file:///a.mp4", "https://a.b/c.mp4", "data:image/png;base64,AA"])
def test_only_data_urls_are_videos(url):
    with pytest.raises(Refusal, match="must have a data URL, data:video/"):
        admitted(body(film(url)))


def test_videos_are_bounded_by_number_and_bytes():
    limits = dataclasses.replace(Limits(), videos=2, video_bytes=300)
    admitted(body(film(), film()), limits)
    with pytest.raises(Refusal, match="more than 2 videos, the limit"):
        admitted(body(film(), film(), film()), limits)
    with pytest.raises(Refusal, match="has 300 bytes, more than the limit of 299"):
        admitted(body(film()), dataclasses.replace(limits, video_bytes=299))


def test_a_system_has_no_video():
    given = body()
    given["messages"].insert(0, {"role": "system", "content": [film()]})
    with pytest.raises(pydantic.ValidationError):
        admitted(given)
