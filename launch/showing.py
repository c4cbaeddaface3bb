"""What a question of `launch.chat` shows: flags of pictures and videos."""

from typing import Any

from absl import flags

from internvl_jax.data import VideoOptions, video_info
from internvl_jax.errors import InputError
from internvl_jax.validation import read_text
from launch import answering

IMAGE = flags.DEFINE_multi_string("image", [], "picture for the (first) question; may be given several times")
_VIDEO = flags.DEFINE_multi_string("video", [], "video, animation or folder of frames, likewise; behind the pictures")
_NUM_FRAMES = flags.DEFINE_integer("num_frames", None, "frames shown of each video; default: 8")
_FPS = flags.DEFINE_float("fps", None, "instead: frames of every second")
_CLIP = flags.DEFINE_string("clip", None, "the part of each video that is shown, from and to in seconds: [2, 5.5]")


def shown() -> list[str | dict[str, Any]]:
    """All of it, as `inference.message` takes it; InputError for what can't be read, before anything slow begins."""
    clip = None if _CLIP.value is None else read_text(_CLIP.value, list[float], "--clip")
    wanted = {"num_frames": _NUM_FRAMES.value, "fps": _FPS.value, "clip": clip}
    if not _VIDEO.value and any(value is not None for value in wanted.values()):
        raise InputError("--num_frames, --fps and --clip are about a video; give one with --video")
    options = VideoOptions(_NUM_FRAMES.value, _FPS.value, clip)
    answering.check_pictures(IMAGE.value)
    for path in _VIDEO.value:
        options.choose(video_info(path))
    return [*IMAGE.value, *({"type": "video", "video": path, **wanted} for path in _VIDEO.value)]
