"""Which frames of which video a question is about, and those frames.

Source: VLMEvalKit at e8e78f05 (mvbench.py, videomme.py, mmbench_video.py, mlvu.py, longvideobench.py, vsibench.py). It
reads frames that it saved as JPEG; these are the decoder's own, as in the release's guide.
"""

import functools
import io
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from PIL import Image

from internvl_jax.data import VideoInfo, frame_choice, show_video
from internvl_jax.errors import InputError

FrameRule = Literal["segments", "inner", "tail"]
# How frames are chosen: from the middle of equal segments within the bounds, evenly without both ends, or evenly from
# the first to the last.
_RULES: dict[str, FrameRule] = {
    "MVBench": "segments",
    "Video-MME": "inner",
    "MMBench-Video": "inner",
    "MLVU_MCQ": "inner",
    "LongVideoBench": "inner",
    "VSI-Bench": "tail",
}


class VideoClip(NamedTuple):
    """What is to be decoded.

    Attributes:
      path: of the video, or of a folder of its frames.
      frames: how many.
      rule: how they are chosen.
      start, end: seconds within which; None: from its beginning, to its end.
    """

    path: pathlib.Path
    frames: int
    rule: FrameRule
    start: float | None = None
    end: float | None = None


FrameSource = Callable[[VideoClip], Sequence[bytes]]  # encoded pictures


def clip_of(suite: str, cells: Mapping[str, str], frames: int, folders: Sequence[pathlib.Path]) -> VideoClip:
    """The clip of a question.

    Args:
      suite: its name.
      cells: of its row.
      folders: where the path of a video may begin.

    Raises:
      InputError: the row names no video, or one that is nowhere, or bounds that are none.
    """
    name = cells.get("video_path") or (cells.get("video") and os.path.join(cells.get("prefix", ""), cells["video"]))
    if not name:
        raise InputError(f"{suite}: the question {cells.get('question', '')!r} names no video.")
    found = [folder / name for folder in folders if (folder / name).exists()]
    if not found:
        looked = ", ".join(map(str, folders))
        raise InputError(f"{suite}: the video {name} is not there (looked in {looked}); give its folder as --images.")
    bounds = [_seconds(suite, cells, side) for side in ("start", "end")] if cells.get("bound") == "True" else []
    return VideoClip(found[0], frames, _RULES[suite], *bounds)


@functools.lru_cache(maxsize=1)  # benchmarks ask several questions in a row about a video
def decode_frames(clip: VideoClip) -> tuple[bytes, ...]:
    """The frames of a clip as picture files, without loss.

    Raises:
      InputError: see `show_video`.
    """
    return tuple(show_video(clip.path, functools.partial(_chosen, clip), _encoded).frames)


def _chosen(clip: VideoClip, info: VideoInfo) -> list[int]:
    """Indices of the frames in decoded order."""
    if clip.rule == "inner":
        return frame_choice.inner_frames(info.frames, clip.frames)
    if clip.rule == "tail":
        return frame_choice.vsi_frames(info.frames, clip.frames)[: clip.frames]  # the official code saves no more
    bounds = None if clip.start is None or clip.end is None else (clip.start, clip.end)
    numbers = frame_choice.guide_frames(info.frames, info.fps, clip.frames, bounds, info.first)
    return [number - info.first for number in numbers]


def _encoded(frame: Image.Image) -> bytes:
    buffer = io.BytesIO()
    frame.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _seconds(suite: str, cells: Mapping[str, str], side: str) -> float:
    try:
        seconds = float(cells.get(side, ""))
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InputError(
            f"{suite}: the question {cells.get('question', '')!r} has the {side} {cells.get(side, '')!r}; give seconds."
        )
    return seconds
