"""Suites about videos: their questions are the recorded ones, with the frames that the official code chooses."""

import hashlib
import io
import json
import pathlib

import av
import numpy as np
import PIL.Image
import pytest

from internvl_jax.data import frame_choice, show_video
from internvl_jax.errors import InputError
from internvl_jax.evaluation import answer_suite, check_pictures, get_suite, open_suite
from internvl_jax.evaluation.suites import suite_run, suite_videos
from internvl_jax.inference import Answer
from tests.data.media.video_test import without_video

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
DATA = GOLDEN / "eval_video" / "data"
PLACES = {"MVBench": "video/x/clip", "Video-MME": "video/vid", "VSI-Bench": "scannet/clip"}


@pytest.fixture
def films(tmp_path):
    """The tables, and the two clips where they say."""
    for name in PLACES:
        (tmp_path / f"{name}.tsv").write_bytes((DATA / f"{name}.tsv").read_bytes())
    for clip, place in (
        ("clip.mp4", "video/x/clip.mp4"),
        ("clip.webm", "video/x/clip.webm"),
        ("clip.mp4", "scannet/clip.mp4"),
        *(("clip.mp4", f"video/vid{number}.mp4") for number in range(2)),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes((DATA / clip).read_bytes())
    return tmp_path


def asked(file, row):
    """The text of a conversation as a processor makes it, and its frames as arrays [H, W, 3]."""
    parts = suite_run.messages(file, row, "default")[-1]["content"]
    text = "".join(part["text"] if part["type"] == "text" else "<image>\n" for part in parts)
    urls = [part["image_url"] for part in parts if part["type"] == "image_url"]
    assert {url["max_dynamic_patch"] for url in urls} == {1}
    return text, [np.asarray(PIL.Image.open(io.BytesIO(url["url"]))) for url in urls]


@pytest.mark.parametrize("name", PLACES)
def test_questions_are_the_recorded_ones(films, name):
    recorded = json.loads((GOLDEN / "eval_video" / "prompts" / f"{name}.json").read_text())["rows"]
    file = open_suite(get_suite(name), films)
    for row in file.table.rows[: len(recorded)]:
        text, frames = asked(file, row)
        assert text == recorded[row.index]["question"] and len(frames) == 8
    check_pictures(file, "default")


def test_mvbench_shows_the_recorded_frames(films):
    """Of a video the middle of each segment; of a clip the same within its bounds."""
    file = open_suite(get_suite("MVBench"), films)
    within, whole = file.table.rows[:2]
    known = json.loads((GOLDEN / "video" / "videos.json").read_text())["videos"]["clip.mp4"]["get_index_frames"]["8"]
    frames = asked(file, whole)[1]
    assert [hashlib.sha256(frame.tobytes()).hexdigest() for frame in frames] == known["sha256_pyav_rgb24"]
    choose = lambda info: frame_choice.guide_frames(info.frames, info.fps, 8, (0.5, 2.0))
    wanted = show_video(films / "video/x/clip.webm", choose, np.asarray).frames
    np.testing.assert_array_equal(asked(file, within)[1], wanted)


@pytest.mark.parametrize(
    ("name", "count", "indices"),
    [
        ("Video-MME", 8, [4, 8, 13, 17, 22, 26, 31, 35]),
        ("VSI-Bench", 8, [0, 5, 11, 16, 22, 27, 33, 39]),
        ("VSI-Bench", 1, [0]),
    ],
)
def test_others_show_frames_by_their_own_rules(films, name, count, indices):
    file = open_suite(get_suite(name), films, frames=count)
    wanted = show_video(films / "scannet/clip.mp4", lambda info: indices, np.asarray).frames
    np.testing.assert_array_equal(asked(file, file.table.rows[0])[1], wanted)


def test_a_folder_of_frames_counts_from_one(films):
    path = films / "video/x/clip.mp4"
    path.unlink()
    path.mkdir()
    for number in range(1, 5):
        PIL.Image.new("RGB", (8, 8), (number, 0, 0)).save(path / f"{number:05d}.png")
    file = open_suite(get_suite("MVBench"), films, frames=2)
    assert [frame[0, 0, 0] for frame in asked(file, file.table.rows[1])[1]] == [1, 3]


def film(times):
    """A clip of black frames at these seconds."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (without_video, "clip.mp4 has no video stream, only audio"),
        (lambda: film([0, 36000]), "clip.mp4 is at least 36,001 s long, more than the limit of 14,400 s"),
        (lambda: (DATA / "clip.mp4").read_bytes()[:7000] + bytes(216), "clip.mp4 has no frame; save it anew"),
        (lambda: b"", "clip.mp4 cannot be read, it may be truncated or broken"),
    ],
)
def test_a_video_that_cannot_be_shown_is_one_sentence(films, content, said):
    (films / "scannet/clip.mp4").write_bytes(content())
    with pytest.raises(InputError, match=said) as caught:
        check_pictures(open_suite(get_suite("VSI-Bench"), films), "default")
    assert "\n" not in str(caught.value)


def test_answers_about_other_frames_are_not_taken_up(films, tmp_path):
    ask = lambda talks: [Answer("A", 1, ()) for _ in talks]
    for frames in (2, 3):
        file = open_suite(get_suite("VSI-Bench"), films, frames=frames)
        answered = lambda file=file: answer_suite(file, "default", tmp_path / "out" / "a.jsonl", ask, {}, 64)
        if frames == 2:
            answered()
    with pytest.raises(InputError, match=r"was begun otherwise \(frames: 2 before, 3 now\)"):
        answered()


@pytest.mark.parametrize("second", ["", "soon", "nan"])
def test_bounds_that_are_no_seconds(second, tmp_path):
    (tmp_path / "a.mp4").touch()
    cells = {"video": "a.mp4", "question": "What then?", "bound": "True", "start": "0.5", "end": second}
    with pytest.raises(InputError, match=f"MVBench: the question 'What then\\?' has the end '{second}'; give seconds"):
        suite_videos.clip_of("MVBench", cells, 8, [tmp_path])
    assert suite_videos.clip_of("MVBench", cells | {"bound": "False"}, 8, [tmp_path]).start is None
    with pytest.raises(InputError, match="names no video"):
        suite_videos.clip_of("MVBench", cells | {"video": "", "prefix": "."}, 8, [tmp_path])


def test_videos_that_are_not_there_are_found_at_once(films):
    (films / "video/x/clip.mp4").unlink()
    with pytest.raises(InputError, match=r"MVBench: the video video/x/clip\.mp4 is not there .*give its folder"):
        check_pictures(open_suite(get_suite("MVBench"), films), "default")
