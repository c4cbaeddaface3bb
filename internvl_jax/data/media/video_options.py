"""What a message may say of a video: which of its frames are shown."""

import dataclasses
from typing import Annotated

from msgspec import Meta

from internvl_jax.data.media.frame_choice import guide_frames, rate_frames
from internvl_jax.data.media.video import VideoInfo
from internvl_jax.errors import InputError
from internvl_jax.validation import check_fields

GUIDE_FRAMES = 8  # of a video in the release's guide
MOST_FRAMES = 4096  # shown of one video: a tile each, as many as a picture may have

FrameCount = Annotated[int, Meta(ge=1, le=MOST_FRAMES)]
FramesPerSecond = Annotated[float, Meta(gt=0, le=1000)]
Second = Annotated[float, Meta(ge=0, le=10**6)]


@dataclasses.dataclass(frozen=True)
class VideoOptions:
    """Which frames of a video are shown.

    Attributes:
      num_frames: so many, evenly (`guide_frames`); 8, the guide's, where neither this nor fps is given.
      fps: instead: so many of every second (`rate_frames`), at least the first.
      clip: from and to, in seconds; all of the video without it.
    """

    num_frames: FrameCount | None = None
    fps: FramesPerSecond | None = None
    clip: tuple[Second, Second] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.clip, list):  # as JSON has it
            object.__setattr__(self, "clip", tuple(self.clip))
        check_fields(self, "video")
        if self.num_frames is not None and self.fps is not None:
            raise InputError(f"video has num_frames {self.num_frames} and fps {self.fps:g}; give one of them.")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise InputError(
                f"video has a clip from {self.clip[0]:g} to {self.clip[1]:g} s; it must end after it begins."
            )

    def choose(self, info: VideoInfo) -> list[int]:
        """Indices in decoded order, from 0; InputError where the clip lies outside, or fps makes too many."""
        if self.clip is not None and round(self.clip[0] * info.fps) >= info.frames + info.first:
            raise InputError(f"{info.name} is {info.seconds:.4g} s long; the clip begins at {self.clip[0]:g} s.")
        if self.fps is None:
            numbers = guide_frames(info.frames, info.fps, self.num_frames or GUIDE_FRAMES, self.clip, info.first)
            return [number - info.first for number in numbers]
        start, end = (0, info.frames) if self.clip is None else (round(second * info.fps) for second in self.clip)
        frames = min(end, info.frames) - start
        count = int(frames / info.fps * self.fps)
        if count > MOST_FRAMES:
            raise InputError(
                f"{info.name} has {count:,} frames at {self.fps:g} a second, more than the {MOST_FRAMES:,} that can be "
                "shown; lower fps, or give num_frames or a clip."
            )
        return [start + index for index in rate_frames(frames, info.fps, self.fps) or [0]]
