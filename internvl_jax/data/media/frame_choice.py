"""Which frames of a video are shown: from a number of frames to indices, bit for bit as others choose them.

1. Answers: `guide_frames` (the release's own guide, and VLMEvalKit's MVBench) and `rate_frames` (VLMEvalKit, so many a
   second).
2. Training: `interval_frames` draws one frame of each interval, as the released data code does; `middle_frames` and
   `stepped_frames` are its settings without chance.
3. What benchmarks and transformers have besides: `inner_frames`, `vsi_frames`, `transformers_frames`.

Indices count decoded frames from 0. `guide_frames` may leave 0 .. frames - 1, where a clip lies outside of the video.
Sources: user guide and `internvl_chat/internvl/train/dataset.py` of OpenGVLab/InternVL at 2410d1d, VLMEvalKit at
e8e78f05, `video_processing_internvl` of transformers 4.55 (equal in 5.24).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from internvl_jax.errors import InputError

Clip = tuple[float, float]
VsiMode = Literal["uniform", "uniform_tail", "chunk_center"]


def guide_frames(frames: int, fps: float, count: int, clip: Clip | None = None, first: int = 0) -> list[int]:
    """The middle of each of `count` equal segments, of the video or of a clip (start, end) in seconds.

    Halves are rounded to even; a short video repeats frames. first: the number of the first frame: 0, or 1 for folders
    of numbered pictures.
    """
    last = frames - 1 + first
    start = first if clip is None else max(first, round(clip[0] * fps))
    end = last if clip is None else min(round(clip[1] * fps), last)
    size = float(end - start) / count
    return [int(start + size / 2 + np.round(size * i)) for i in range(count)]


def rate_frames(frames: int, video_fps: float, fps: float) -> list[int]:
    """`fps` frames of every second from the first frame on; none of a video that is too short for one."""
    count = int(frames / video_fps * fps)
    return [int(i * (video_fps / fps)) for i in range(count)]


def intervals(frames: int, count: int) -> list[range]:
    """The indices of `count` intervals of nearly equal length; of fewer where there are fewer frames."""
    edges = np.linspace(0, frames, min(count, frames) + 1).astype(int).tolist()
    return [range(start, end) for start, end in itertools.pairwise(edges)]


def interval_frames(
    frames: int, count: int, choice: Callable[[range], int], permutation: Callable[[int], Sequence[int]]
) -> list[int]:
    """One frame drawn from each interval but for its last one, which the released code never draws.

    Where an interval has a single frame, the frames of a permutation instead, in order. A video of fewer frames than
    `count` repeats its last.

    Args:
      choice: draws from a range, as `random.choice` does.
      permutation: of 0 .. n - 1, as that of `numpy.random`.
    """
    _check_frames(frames)
    parts = intervals(frames, count)
    if all(len(part) > 1 for part in parts):
        chosen = [choice(part[:-1]) for part in parts]
    else:
        chosen = sorted(int(index) for index in permutation(frames)[: len(parts)])
    return _padded(chosen, count)


def middle_frames(frames: int, count: int) -> list[int]:
    """The middle of each interval; a video of fewer frames than `count` repeats its last."""
    _check_frames(frames)
    return _padded([(part.start + part.stop - 1) // 2 for part in intervals(frames, count)], count)


def stepped_frames(frames: int, video_fps: float, fps: float, most: int | None = None) -> list[int]:
    """The middle of every 1 / fps seconds, the first `most` of them."""
    step = 1 / fps
    seconds = np.arange(step / 2, frames / float(video_fps) + step / 2, step)
    indices = np.round(seconds * video_fps).astype(int).tolist()
    return [index for index in indices if index < frames][:most]


def inner_frames(frames: int, count: int) -> list[int]:
    """VLMEvalKit's Video-MME and MMBench-Video: the inner ones of count + 1 equal steps."""
    step = frames / (count + 1)
    return [int(i * step) for i in range(1, count + 1)]


def vsi_frames(frames: int, count: int, mode: VsiMode = "uniform_tail") -> list[int]:
    """VLMEvalKit's VSI-Bench: evenly from the first frame to the last, the same with the last frame behind where it is
    not there (VLMEvalKit's default), or the middles of equal parts.
    """
    last = frames - 1
    if mode == "chunk_center":
        step = frames / count
        return [min(round(i * step) + int(step / 2), last) for i in range(count)]
    even = np.linspace(0, last, count).astype(int).tolist()
    return [*even, last] if mode == "uniform_tail" and even[-1] != last else even


def transformers_frames(frames: int, count: int, shift: float | None = None) -> list[int]:
    """`InternVLVideoProcessor.sample_frames`: equal steps in float32 from `shift` on, which is half a step by default.

    Raises:
      InputError: there are fewer frames.
    """
    if count > frames:
        raise InputError(f"{count} frames are asked of a video that has {frames}; ask for at most as many.")
    start = frames / count / 2 if shift is None else shift
    return np.arange(start, frames, frames / count, dtype=np.float32).astype(int).tolist()


def _padded(chosen: list[int], count: int) -> list[int]:
    return chosen + [chosen[-1]] * (count - len(chosen))


def _check_frames(frames: int) -> None:
    if frames < 1:
        raise InputError("a video has no frame, so there is none to show; leave it out.")
