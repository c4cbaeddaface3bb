"""Videos in messages: frames stand where the video stands, as in the guide and in transformers."""

import base64
import json
import re

import numpy as np
import pytest

from internvl_jax import data
from internvl_jax.data.media import images, tiling, video
from internvl_jax.data.text import templates
from internvl_jax.errors import InputError

CONFIG = tiling.ImageConfig(56, 4, 1, 12, True, False, 1_000_000)
PATCH = "<IMG_CONTEXT>"
FRAME = f"<img>{PATCH * 4}</img>"


@pytest.fixture(scope="module")
def process(request):
    tokenizer = data.Tokenizer.load(request.path.parents[1] / "golden/visualprm_qwen2_github")
    return data.Processor(CONFIG, tokenizer, data.get_template("internvl2_5"))


@pytest.fixture
def clips(golden):
    return golden / "video" / "videos"


def user(*content):
    return [{"role": "user", "content": [*content]}]


def text(string):
    return {"type": "text", "text": string}


def read(process, inputs):
    """The user's turn."""
    whole = process.tokenizer.decode(inputs.tokens_T, skip_special=False)
    return whole.partition("<|im_start|>user\n")[2].removesuffix("<|im_end|>\n<|im_start|>assistant\n")


def frames_of(path, count):
    one = tiling.frame_tiles(CONFIG)
    options = data.VideoOptions(count)
    shown = video.show_video(path, options.choose, lambda image: images.tile_image(image, one))
    return np.concatenate(shown.frames)


def test_a_video_becomes_lines_of_frames(process, clips):
    """The released guide's prompt, and 8 frames where nothing else is said."""
    inputs = process(user({"type": "video", "video": clips / "clip.mp4"}, text("What moves?")))
    lines = "".join(f"Frame{number}: {FRAME}\n" for number in range(1, 9))
    assert read(process, inputs) == f"{lines}What moves?"
    assert inputs.image_token_counts == (4,) * 8 and inputs.image_sizes == ((128, 96, 1, 1),) * 8
    np.testing.assert_array_equal(inputs.tiles_GHWC, frames_of(clips / "clip.mp4", 8))


def test_the_guides_lines_are_the_recorded_ones(golden):
    recorded = json.loads((golden / "video/videos.json").read_text())["prompts"]
    parts = ["<image>" if part is data.IMAGE else part for part in templates.frame_parts(4)]
    assert "".join(parts) == recorded["inference"]
    assert templates.frame_lines(4, templates.FRAME_SFT) == recorded["sft_training"]
    assert templates.frame_lines(4, templates.FRAME_MPO) == recorded["mpo_training"]
    assert recorded["num_patches_list"] == [1] * 4


def test_tokens_are_those_of_transformers(process, golden):
    """Its processor, given the same text with marks where pictures (here of 13 tiles) and videos stand."""
    recorded = json.loads((golden / "video/hf_processor.json").read_text())
    names = {number: name for name, number in recorded["added_tokens"].items()} | {421: "<|im_start|>"}
    tokenizer, names = process.tokenizer, names | {422: "<|im_end|>"}
    picture = lambda count: [tokenizer.image_start, *[tokenizer.image_context] * count, tokenizer.image_end]
    for case in recorded["cases"]:
        items, frames = [], iter(case["frames"])
        for piece in re.split(rf"(<\|\w+\|>|{PATCH}|<video>)", case["text"]):
            if piece == "<video>":
                parts = templates.frame_parts(next(frames))[:-1]  # its text goes on behind the last frame
                items += [each for part in parts for each in ([part] if isinstance(part, str) else picture(4))]
            else:
                items += picture(52) if piece == PATCH else tokenizer.split_special(piece)
        ids = [tokenizer.token_id(names[each]) if each in names else each for each in case["input_ids"]]
        assert tokenizer.encode_items(items) == ids, case["name"]
    assert [case["name"] for case in recorded["cases"]] == ["video", "video_and_image", "two_videos"]


def test_videos_and_pictures_keep_their_places(process, clips):
    """Each video counts its frames from 1; a GIF is a picture or a video as the message says."""
    encoded = base64.b64encode((clips / "clip.webm").read_bytes()).decode()
    inputs = process(
        user(
            text("first "),
            {"type": "video", "path": str(clips / "clip.mp4"), "num_frames": 2},
            {"type": "image", "image": clips / "clip.gif"},
            {"type": "video", "base64": encoded, "fps": 1},
            {
                "type": "video_url",
                "video_url": {"url": (clips / "clip.gif").as_uri(), "clip": [0, 0.5], "num_frames": 1},
            },
            text("then"),
        )
    )
    still = f"<img>{PATCH * 52}</img>"
    assert read(process, inputs) == (
        f"first Frame1: {FRAME}\nFrame2: {FRAME}\n{still}\nFrame1: {FRAME}\nFrame1: {FRAME}\nthen"
    )
    assert inputs.image_token_counts == (4, 4, 52, 4, 4) and len(inputs.tiles_GHWC) == 17
    np.testing.assert_array_equal(inputs.tiles_GHWC[:2], frames_of(clips / "clip.mp4", 2))
    np.testing.assert_array_equal(inputs.tiles_GHWC[15:16], frames_of(clips / "clip.webm", 40)[:1])


def test_tiles_are_counted_without_decoding(process, clips, monkeypatch):
    messages = user(
        {"type": "video", "video": clips / "clip.mp4", "fps": 2},
        {"type": "video", "video": clips / "clip.webm", "num_frames": 60},
        text("?"),
    )
    assert len(process(messages).tiles_GHWC) == 68
    monkeypatch.setattr(video._Container, "decoded", None)
    assert process.num_tiles(messages) == 68


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"type": "video", "video": "no.mp4"}, "part 0 of message 0: video no.mp4 does not exist"),
        ({"type": "video"}, "part 0 of message 0 must be"),
        ({"type": "video", "video": "a", "url": "b"}, "part 0 of message 0 must be"),
        ({"type": "video_url", "video_url": {}}, "part 0 of message 0 must be"),
        ({"type": "video", "video": "a", "num_frames": 0}, "part 0 of message 0: video.num_frames is 0"),
        ({"type": "video", "video": "a", "clip": 3}, "part 0 of message 0: video.clip is 3"),
        ({"type": "video", "video": "https://host/a.mp4"}, "is a remote address"),
    ],
)
def test_errors_name_the_part(process, part, sentence):
    with pytest.raises(InputError, match=sentence):
        process(user(part, text("?")))


def test_only_users_show_videos(process):
    shown = {"role": "system", "content": [{"type": "video", "video": "a.mp4"}]}
    with pytest.raises(InputError, match="part 0 of message 0 is a video; only user messages may have videos"):
        process([shown, *user(text("?"))])


def test_paths_may_be_refused(process, clips):
    with pytest.raises(InputError, match="not allowed here"):
        process(user({"type": "video", "video": clips / "clip.mp4"}), allow_paths=False)
