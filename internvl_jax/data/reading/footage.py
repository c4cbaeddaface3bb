"""The video of a released annotation line: {"video": path, "clip": [start, end], "conversations": ...}.

How many frames it gets is drawn from 8 to 32, as released, but by the line itself: so it is known before any file is
opened, and the same in every epoch. Which frames they are is drawn anew each time.
Source: released `docs/chat_data_format`, `dataset.py` and `internvl_chat_finetune.py` of internvl_chat.
"""

import dataclasses
import hashlib
import os

import numpy as np

from internvl_jax.data.media import images, tiling
from internvl_jax.data.media.frame_choice import interval_frames, middle_frames
from internvl_jax.data.media.video import VideoInfo, frame_limits, show_video, video_info
from internvl_jax.data.media.video_options import VideoOptions
from internvl_jax.data.text import templates
from internvl_jax.errors import InputError
from internvl_jax.validation import FilePath, build, check_value

_SHOWN_TO = ("human", "pretrain")


@dataclasses.dataclass(frozen=True)
class Footage:
    """A video as a line names it.

    Attributes:
      path: of the file or the folder of frames.
      frames: how many are shown, a tile each.
      clip: from and to, in seconds; None for all of it.
    """

    path: str
    frames: int
    clip: tuple[float, float] | None = None

    def check_there(self, config: tiling.ImageConfig, *, opened: bool) -> None:
        """Raises InputError if there is no such file; opened: or if it is no video that could be shown."""
        if not os.path.exists(self.path):
            raise InputError(f"{images.describe(self.path, 'video')} does not exist; check the path and the root.")
        if opened:
            self._within(video_info(self.path, frame_limits(config)))

    def tiles(self, config: tiling.ImageConfig, rng: np.random.Generator) -> list[np.ndarray]:
        """uint8 [1, H, W, 3] of every frame, drawn by `interval_frames`."""

        def choose(info: VideoInfo) -> list[int]:
            first, frames = self._within(info)
            draw = lambda part: int(rng.integers(part.start, part.stop))
            shuffled = lambda count: rng.permutation(count).tolist()
            return [first + index for index in interval_frames(frames, self.frames, draw, shuffled)]

        one = tiling.frame_tiles(config)
        return show_video(self.path, choose, lambda image: images.tile_image(image, one), frame_limits(config)).frames

    def middle_tiles(self, config: tiling.ImageConfig) -> list[np.ndarray]:
        """The same of the frames in the middle of each interval, without chance."""

        def choose(info: VideoInfo) -> list[int]:
            first, frames = self._within(info)
            return [first + index for index in middle_frames(frames, self.frames)]

        one = tiling.frame_tiles(config)
        return show_video(self.path, choose, lambda image: images.tile_image(image, one), frame_limits(config)).frames

    def _within(self, info: VideoInfo) -> tuple[int, int]:
        """The first frame that may be shown, and how many."""
        if self.clip is None:
            return 0, info.frames
        first = int(self.clip[0] * info.fps)
        frames = min(int((self.clip[1] - self.clip[0]) * info.fps), info.frames - first)
        if frames < 1:
            raise InputError(
                f"{info.name} is {info.seconds:.4g} s long, and no frame lies in its clip {[*self.clip]} s."
            )
        return first, frames


def parse_footage(
    entry: dict, line: bytes, name: str, bounds: tuple[int, int]
) -> tuple[str, int, tuple[float, float] | None] | None:
    """The path as written, the number of frames and the clip of a line; None if it has no video.

    Args:
      line: the whole line, which decides the number of frames.
      bounds: the fewest and the most frames.

    Raises:
      InputError: naming the line, if it is not of a known form.
    """
    path = entry.get("video")
    if path is None or path == "":
        return None
    check_value(path, FilePath, f"{name}: video")
    if entry.get("image"):
        raise InputError(f"{name} has an image and a video; a line has one of them.")
    clip = entry.get("clip")
    options = build(VideoOptions, {"num_frames": None, "fps": None, "clip": clip}, name)
    fewest, most = bounds
    drawn = int.from_bytes(hashlib.sha256(line.strip()).digest()[:8], "big") % (most - fewest + 1)
    return path, fewest + drawn, options.clip


def with_frames(turns: list[dict[str, str]], frames: int, head: str, name: str) -> list[dict[str, str]]:
    """The turns with a line for every frame in the place of `<video>`; without one, before the first human turn.

    Args:
      head: how a line begins, see `templates.frame_lines`.

    Raises:
      InputError: naming the line, if `<video>` stands there twice.
    """
    mark = templates.VIDEO_PLACEHOLDER
    asked = [number for number, turn in enumerate(turns) if turn["from"] in _SHOWN_TO]
    found = sum(turns[number]["value"].count(mark) for number in asked)
    if found > 1:
        raise InputError(f"{name} has {found} {mark} placeholders but one video; leave one.")
    lines = templates.frame_lines(frames, head)
    written = [dict(turn) for turn in turns]
    for number in asked if found else asked[:1]:
        text = written[number]["value"]
        written[number]["value"] = text.replace(mark, lines) if found else f"{lines}\n{text}"
    return written
