"""Which frames of which video a question is about; who decodes them is given from outside.

Source: VLMEvalKit at e8e78f05 (mvbench.py, videomme.py, vsibench.py).
"""

import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from PIL import Image

from internvl_jax.errors import InputError

FrameRule = Literal["segments", "inner", "tail"]
# How frames are chosen: from the middle of equal segments within the bounds, evenly without both ends, or evenly from
# the first to the last.
_RULES: dict[str, FrameRule] = {"MVBench": "segments", "Video-MME": "inner", "VSI-Bench": "tail"}


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


FrameSource = Callable[[VideoClip], Sequence[Image.Image]]


def clip_of(suite: str, cells: Mapping[str, str], frames: int, folders: Sequence[pathlib.Path]) -> VideoClip:
    """The clip of a question.

    Args:
      suite: its name.
      cells: of its row.
      folders: where the path of a video may begin.

    Raises:
      InputError: the row names no video, or one that is nowhere.
    """
    name = cells.get("video_path") or cells.get("prefix", "") + cells.get("video", "")
    if not name:
        raise InputError(f"{suite}: the question {cells.get('question', '')!r} names no video.")
    found = [folder / name for folder in folders if (folder / name).exists()]
    if not found:
        looked = ", ".join(map(str, folders))
        raise InputError(f"{suite}: the video {name} is not there (looked in {looked}); give its folder as --images.")
    bounds = [_seconds(cells.get(side, "")) if cells.get("bound") == "True" else None for side in ("start", "end")]
    return VideoClip(found[0], frames, _RULES[suite], *bounds)


def encoded(frame: Image.Image) -> bytes:
    """A frame as a picture file, without loss."""
    buffer = io.BytesIO()
    frame.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _seconds(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
