"""Videos are decoded to the recorded bytes, within bounds, and what can't be read is one sentence."""

import base64
import hashlib
import io
import json
import logging
import sys
import weakref

import av
import numpy as np
import pytest
from PIL import Image

from internvl_jax.data.media import images, tiling, video
from internvl_jax.data.media.video_options import VideoOptions
from internvl_jax.errors import InputError

CONFIG = tiling.ImageConfig(56, 4, 1, 12, True, False, 1_000_000)
CLIPS = ("clip.mp4", "clip.webm", "clip.gif")


def show(source, limits=video.LIMITS, **options):
    return video.show_video(source, VideoOptions(**options).choose, np.asarray, limits)


@pytest.fixture
def clips(golden):
    return golden / "video" / "videos"


@pytest.fixture
def recorded(golden):
    return json.loads((golden / "video" / "videos.json").read_text())


def clip_of(frames, codec="mpeg4", rate=10, times=None):
    """An MP4 of arrays [H, W, 3]; times in frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_the_recorded_bytes(clips, recorded, name):
    """H.264 with frames out of order, VP9 without a count in its header, GIF."""
    known = recorded["videos"][name]
    info = video.video_info(clips / name)
    assert info[1:5] == (known["frames"], known["average_fps"], known["width"], known["height"])
    for count, wanted in known["get_index_frames"].items():
        shown = show((clips / name).read_bytes(), num_frames=int(count))
        assert list(shown.indices) == wanted["indices"]
        digests = [hashlib.sha256(frame.tobytes()).hexdigest() for frame in shown.frames]
        if digests != wanted["sha256_pyav_rgb24"]:  # another FFmpeg's colours: within the recorded tolerance
            means = [frame.reshape(-1, 3).mean(0) for frame in shown.frames]
            np.testing.assert_allclose(means, wanted["mean_rgb"], atol=1.5)


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_the_recorded_pixels(golden, clips, name):
    outputs, key = np.load(golden / "video" / "outputs.npz"), name.replace(".", "_")
    shown = video.show_video(clips / name, lambda info: outputs[f"{key}_index"].tolist(), np.asarray)
    assert np.abs(np.stack(shown.frames).astype(int) - outputs[f"{key}_frames"]).mean() <= 2


def test_tiles_are_those_of_the_release(golden, clips):
    """One tile a frame. transformers resizes tensors instead of pictures: one level of 255 apart."""
    outputs, one = np.load(golden / "video" / "outputs.npz"), tiling.frame_tiles(CONFIG)
    options = VideoOptions(num_frames=4)
    shown = video.show_video(clips / "clip.mp4", options.choose, lambda image: images.tile_image(image, one))
    assert list(shown.indices) == outputs["github_indices"].tolist()
    tiles_GHWC = np.concatenate(shown.frames)
    recorded_GHWC = outputs["github_tiles_u8"].transpose(0, 2, 3, 1)
    assert tiles_GHWC.shape == recorded_GHWC.shape == (4, 56, 56, 3)
    assert np.abs(tiles_GHWC.astype(int) - recorded_GHWC).mean() <= 1
    pixels = images.normalise(recorded_GHWC).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pixels, outputs["github_pixel_values"], atol=1e-6)
    ours = images.normalise(tiles_GHWC).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, outputs["hf_pixel_values_videos"], atol=0.02)
    processed = np.load(golden / "video" / "hf_processor.npz")
    np.testing.assert_allclose(ours, processed["pixel_values_video"], atol=0.02)
    # A picture of 13 tiles and a video behind it: tiles in the order of the text.
    np.testing.assert_allclose(ours[:2], processed["pixel_values_video_and_image"][13:], atol=0.02)


def test_clips_rates_and_counts(clips):
    mp4 = clips / "clip.mp4"  # 40 frames, 10 a second
    assert show(mp4).indices == (2, 7, 12, 17, 22, 26, 31, 36)
    assert show(mp4, fps=1).indices == (0, 10, 20, 30)
    assert show(mp4, fps=2, clip=(1, 3)).indices == (10, 15, 20, 25)
    assert show(mp4, num_frames=2, clip=[0.5, 2.25]).indices == (9, 17)
    assert show(mp4, fps=0.1).indices == (0,)


def test_a_frame_that_is_asked_for_twice_is_decoded_once(clips):
    seen = []
    shown = video.show_video(clips / "clip.webm", lambda info: [7, 3, 7], lambda image: seen.append(image) or image)
    assert len(seen) == 2 and shown.frames == [seen[1], seen[0], seen[1]]


def test_a_data_url_is_read_and_a_path_may_be_refused(clips):
    encoded = base64.b64encode((clips / "clip.mp4").read_bytes()).decode()
    url = f"data:video/mp4;base64,{encoded}"
    assert video.video_info(url, allow_paths=False).frames == 40
    assert len(video.video_info(url).name) < 60
    for path in (clips / "clip.mp4", (clips / "clip.mp4").as_uri(), clips):
        with pytest.raises(InputError, match="not allowed here; send a data URL"):
            video.video_info(path, allow_paths=False)


def test_a_recording_may_begin_at_any_time():
    """As those of broadcasts do: five seconds after five hours are five seconds."""
    frames = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), np.uint8)
    encoded, stream = clip_of(frames), io.BytesIO()
    with av.open(io.BytesIO(encoded)) as container, av.open(stream, "w", format="mpegts") as copy:
        target = copy.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                later = int(18_000 / packet.time_base)
                packet.stream, packet.pts, packet.dts = target, packet.pts + later, packet.dts + later
                copy.mux(packet)
    info = video.video_info(stream.getvalue())
    assert (info.frames, info.fps) == (50, 10)
    with pytest.raises(InputError, match="at least 5 s long, more than the limit of 4 s"):
        video.video_info(stream.getvalue(), video.VideoLimits(seconds=4))


def test_an_animation_keeps_its_time():
    buffer, frames = io.BytesIO(), [Image.new("RGB", (20, 10), (20 * k, 0, 0)) for k in range(7)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=50, lossless=True)
    assert video.video_info(buffer.getvalue())[1:5] == (7, 20.0, 20, 10)
    shown = show(buffer.getvalue(), num_frames=3)
    assert [int(frame[0, 0, 0]) for frame in shown.frames] == [20 * index for index in shown.indices] == [20, 60, 100]


def test_a_folder_of_frames_is_read_by_number(tmp_path):
    """As MVBench has them: three a second, counted from 1; 10 comes after 9."""
    for k in range(1, 13):
        Image.new("RGB", (8, 6), (20 * k, 0, 0)).save(tmp_path / f"{k}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert video.video_info(tmp_path)[1:] == (12, 3.0, 8, 6, 1)
    shown = show(tmp_path, num_frames=4)
    assert [int(frame[0, 0, 0]) // 20 for frame in shown.frames] == [2, 5, 8, 10]
    assert show(tmp_path, num_frames=2, clip=(1, 2)).indices == (2, 4)


def test_a_file_whose_end_is_missing_shows_what_is_there(clips, caplog):
    data = (clips / "clip.webm").read_bytes()
    packets = video.video_info(data).frames
    cut = show(data[:3000], num_frames=4)
    assert cut.info.frames < packets and max(cut.indices) < cut.info.frames
    whole = video.show_video(data, lambda info: range(packets), np.asarray).frames
    for index, frame in zip(cut.indices, cut.frames, strict=True):
        np.testing.assert_array_equal(frame, whole[index])

    class Short(video._Container):
        def decoded(self, wanted):
            yield from list(super().decoded(wanted))[:30]

    with caplog.at_level(logging.WARNING):
        video_container, video._Container = video._Container, Short
        try:
            assert max(show(data, num_frames=4).indices) == 25
        finally:
            video._Container = video_container
    assert "only 30 of 40 frames can be decoded" in caplog.text


BLACK = np.zeros((16, 16, 3), np.uint8)


def without_video():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("source", "limits", "sentence"),
    [
        (lambda clips: clips / "no.mp4", {}, "no.mp4 does not exist"),
        (lambda clips: "/dev/zero", {}, "is no file, nor a folder"),
        (lambda clips: 3, {}, "video given as int cannot be read as a video; give a path"),
        (lambda clips: "https://host/a.mp4", {}, "is a remote address"),
        (lambda clips: "data:text/plain;base64,AAAA", {}, "is not of the form data:video"),
        (lambda clips: b"", {}, "video of 0 bytes cannot be read"),
        (lambda clips: clips.parent / "README.md", {}, "README.md cannot be read, it may be truncated or broken"),
        (lambda clips: clips.parent.parent / "losses", {}, "is a folder without a picture"),
        (lambda clips: (clips / "clip.mp4").read_bytes()[:3000], {}, "may be truncated or broken"),
        (lambda clips: (clips / "clip.mp4").read_bytes()[:7000] + bytes(216), {}, "has no frame"),
        (lambda clips: (clips / "clip.gif").read_bytes()[:2000], {}, "may be truncated or broken"),
        (lambda clips: without_video(), {}, "has no video stream, only audio"),
        (lambda clips: clip_of([BLACK, BLACK], rate=1, times=[0, 36000]), {}, "at least 36,001 s long, more than"),
        (lambda clips: clips / "clip.mp4", {"seconds": 3}, "at least 4 s long, more than the limit of 3 s"),
        (lambda clips: clips / "clip.gif", {"seconds": 0.5}, "at least 1 s long"),
        (lambda clips: clips / "clip.webm", {"frames": 39}, "has over 39 frames"),
        (lambda clips: clips / "clip.gif", {"frames": 9}, "has over 9 frames"),
        (lambda clips: clips / "clip.gif", {"animated": 9 * 12288}, "has over 9 frames of 12,288 pixels, which takes"),
        (lambda clips: clips / "clip.mp4", {"pixels": 12287}, "frames of 12,288 pixels"),
        (lambda clips: clips / "clip.gif", {"pixels": 12287}, "frames of 12,288 pixels"),
        (lambda clips: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", {}, "cannot be read|not a video"),
        (lambda clips: f"ffconcat version 1.0\nfile '{clips}/clip.mp4'\n".encode(), {}, "is not a video that can be"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(clips, source, limits, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        show(source(clips), video.VideoLimits(**limits))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_frames": 0}, "video.num_frames is 0; it must be a whole number from 1 to 4,096"),
        ({"fps": 0}, "video.fps is 0"),
        ({"num_frames": 2, "fps": 1}, "has num_frames 2 and fps 1; give one"),
        ({"clip": (2, 1)}, "clip from 2 to 1 s; it must end after it begins"),
        ({"clip": (5, 6)}, "is 4 s long; the clip begins at 5 s"),
        ({"clip": "ab"}, "video.clip is 'ab'"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(clips, options, sentence):
    with pytest.raises(InputError, match=sentence):
        show(clips / "clip.mp4", **options)


def test_more_frames_than_can_be_shown_are_an_error():
    hour = video.VideoInfo("film", 36000, 10.0, 8, 8)
    assert len(VideoOptions(fps=1).choose(hour)) == 3600
    with pytest.raises(InputError, match=r"film has 7,200 frames at 2 a second, more than the 4,096"):
        VideoOptions(fps=2).choose(hour)
    with pytest.raises(InputError, match="more than the 4,096"):  # before a list of them is made
        VideoOptions(fps=1000).choose(hour._replace(frames=1 << 20, fps=1e-6))


@pytest.mark.parametrize("indices", [[], [40], [-1, 2]])
def test_frames_that_are_not_there_are_an_error(clips, indices):
    with pytest.raises(InputError, match="none was chosen" if not indices else "choose within it"):
        video.show_video(clips / "clip.mp4", lambda info: indices, np.asarray)


def test_a_missing_library_is_said_and_animations_do_without(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"needs PyAV to be read; pip install 'internvl_jax\[video\]'"):
        video.video_info(clips / "clip.mp4")
    assert video.video_info(clips / "clip.gif").frames == 10


def test_one_frame_is_held_at_a_time(clips):
    """What is not wanted is not kept: no frame lives on behind the next but one."""
    alive, most = [], 0

    def see(image):
        nonlocal most
        alive.append(weakref.ref(image))
        most = max(most, sum(ref() is not None for ref in alive))
        return image.size

    video.show_video(clips / "clip.mp4", lambda info: range(40), see)
    assert len(alive) == 40 and most <= 2
