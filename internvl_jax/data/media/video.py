"""Videos in, pictures out: files, animations and folders of frames, each frame by its place in decoded order.

1. `open_video` looks at a source: GIF and WebP animations with Pillow, a folder of numbered pictures as MVBench has
   them, and all else with PyAV (extra `video`). Frames are counted as they stand in the file, since headers of WebM and
   others don't say.
2. `show_video` decodes from the start up to the last chosen frame, and hands on the chosen ones, one at a time: what is
   held in memory is one frame and what the caller makes of it.
3. Length, frames and pixels are bounded, before anything is decoded where the header says them.

Frames are not sought by time: containers round it, and a seek may land beside what was meant. FFmpeg opens nothing but
what it was given, whatever that says (playlists, references, addresses).
"""

import contextlib
import dataclasses
import io
import itertools
import logging
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence, Set
from types import ModuleType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from PIL import Image

from internvl_jax.data.media import images, tiling
from internvl_jax.errors import InputError
from internvl_jax.validation import Count, Positive, check_fields, first_line

_LOG = logging.getLogger(__name__)

VideoSource = str | pathlib.Path | bytes
T = TypeVar("T")

FOLDER_FPS = 3.0  # of MVBench's folders of frames, which say nothing of it
_KINDS = ("video", "image")  # of data URLs: an animation is an image
_ANIMATIONS = ("GIF", "WEBP")
_STILLS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# Containers alone, by FFmpeg's names: no playlists, no lists of files, no devices.
_CONTAINERS = "asf,avi,flv,ivf,matroska,mov,mpeg,mpegts,ogg"
_NO_DELAY = 100  # milliseconds that browsers show a frame of an animation that names none
_MICROSECONDS = 1_000_000


@dataclasses.dataclass(frozen=True)
class VideoLimits:
    """What is read of a video.

    Attributes:
      seconds: the longest.
      frames: the most that it may have, shown or not.
      pixels: of a frame.
      animated: pixels of all frames of an animation together, which are counted by decoding them.
    """

    seconds: Positive = 4 * 3600.0
    frames: Count = 1 << 20
    pixels: Count = 1 << 26
    animated: Count = 1 << 33

    def __post_init__(self) -> None:
        check_fields(self, "video limits")


LIMITS = VideoLimits()


def frame_limits(config: tiling.ImageConfig) -> VideoLimits:
    """The usual limits, and no more pixels of a frame than of a picture."""
    return dataclasses.replace(LIMITS, pixels=min(LIMITS.pixels, config.max_pixels))


class VideoInfo(NamedTuple):
    """What is known of a video before it is decoded.

    Attributes:
      name: what errors call it.
      frames: all of them.
      fps: frames a second, on average.
      width, height: of a frame, in pixels.
      first: the number that rules give the first frame: 1 in folders, 0 elsewhere.
    """

    name: str
    frames: int
    fps: float
    width: int
    height: int
    first: int = 0

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


class ShownVideo(NamedTuple, Generic[T]):
    """Chosen frames.

    Attributes:
      info: of the video.
      indices: of the frames, in decoded order from 0.
      frames: what the caller made of each.
    """

    info: VideoInfo
    indices: tuple[int, ...]
    frames: list[T]


class _Frames(Protocol):
    """Where frames come from."""

    def info(self) -> VideoInfo: ...

    def decoded(self, wanted: Set[int]) -> Iterator[Image.Image | None]:
        """Every frame in turn; None for those that nobody wants, which costs less."""


def video_info(source: VideoSource, limits: VideoLimits = LIMITS, *, allow_paths: bool = True) -> VideoInfo:
    """What is known of a video. No frame is decoded, but for those of an animation, which can't be counted otherwise.

    Args:
      source: path of a file or a folder of pictures, `file:///...` URL, encoded bytes, or `data:video/...;base64,...`.
      allow_paths: False (servers) refuses files of this machine.

    Raises:
      InputError: it is missing, broken, no video, without a frame, or over a limit; PyAV is needed and missing.
    """
    return _frames(source, limits, allow_paths).info()


def show_video(
    source: VideoSource,
    choose: Callable[[VideoInfo], Sequence[int]],
    see: Callable[[Image.Image], T],
    limits: VideoLimits = LIMITS,
    *,
    allow_paths: bool = True,
) -> ShownVideo[T]:
    """The chosen frames of a video, RGB.

    Args:
      source, limits, allow_paths: see `video_info`.
      choose: gives indices in decoded order, from 0, repeated and unordered as wanted; see `frame_choice`.
      see: what is kept of a frame. It is called once for a frame, in decoded order.

    Raises:
      InputError: as `video_info`; and for indices that the video doesn't have, or a frame that can't be decoded.
    """
    frames = _frames(source, limits, allow_paths)
    info = frames.info()
    while True:
        indices = tuple(choose(info))
        if not indices:
            raise InputError(f"{info.name} has {info.frames} frames, of which none was chosen; ask for more of it.")
        if not 0 <= min(indices) <= max(indices) < info.frames:
            raise InputError(
                f"{info.name} has {info.frames} frames ({info.seconds:.4g} s), not those that were asked for (frame "
                f"{min(indices) if min(indices) < 0 else max(indices)}); choose within it."
            )
        wanted, seen, number = set(indices), dict[int, T](), -1
        for number, image in enumerate(itertools.islice(frames.decoded(wanted), max(indices) + 1)):
            if image is not None:
                seen[number] = see(image)
        if len(seen) == len(wanted):
            return ShownVideo(info, indices, [seen[index] for index in indices])
        # Fewer frames than packets, as in a file whose end is missing: what is there is the video.
        if number < 0:
            raise InputError(f"{info.name} has no frame that can be decoded; save it anew.")
        _LOG.warning("%s: only %d of %d frames can be decoded, and are shown", info.name, number + 1, info.frames)
        info = info._replace(frames=number + 1)


def _frames(source: VideoSource, limits: VideoLimits, allow_paths: bool) -> _Frames:
    name = images.describe(source, "video")
    file = images.file_of(source, name, allow_paths, _KINDS)
    if not isinstance(file, io.BytesIO):
        if os.path.isdir(file):
            return _Folder(pathlib.Path(file), name, limits)
        if not os.path.isfile(file):
            there = "is no file, nor a folder of frames" if os.path.exists(file) else "does not exist; check the path"
            raise InputError(f"{name} {there}.")
    with _handle(file, name) as handle:
        start = handle.read(12)
    if start[:6] in (b"GIF87a", b"GIF89a") or (start[:4], start[8:]) == (b"RIFF", b"WEBP"):
        return _Animation(file, name, limits)
    return _Container(file, name, limits)


@dataclasses.dataclass(frozen=True)
class _Container:
    """What FFmpeg reads."""

    file: str | pathlib.Path | io.BytesIO
    name: str
    limits: VideoLimits

    def info(self) -> VideoInfo:
        """Counts packets: a frame each."""
        with self._opened() as (container, stream):
            context, seconds = stream.codec_context, (container.duration or 0) / _MICROSECONDS
            _check(self.name, self.limits, seconds, stream.frames, context.width * context.height)
            count, times = 0, (math.inf, -math.inf)  # a recording may begin at any time
            for packet in container.demux(stream):
                count += packet.size > 0
                if packet.pts is not None:
                    time = float(packet.pts * packet.time_base)
                    times = (min(times[0], time), max(times[1], time))
                _check(self.name, self.limits, times[1] - times[0], count, 0)
            rate = stream.average_rate or stream.guessed_rate
        if not count:
            raise InputError(f"{self.name} has no frame; save it anew.")
        fps = float(rate) if rate else count / seconds if seconds else 0.0
        if not fps > 0:
            raise InputError(f"{self.name} doesn't say how many frames a second it has; save it anew.")
        return VideoInfo(self.name, count, fps, context.width, context.height)

    def decoded(self, wanted: Set[int]) -> Iterator[Image.Image | None]:
        with self._opened() as (container, stream):
            for number, frame in enumerate(container.decode(stream)):
                _check(self.name, self.limits, 0, 0, frame.width * frame.height)
                yield Image.fromarray(frame.to_ndarray(format="rgb24")) if number in wanted else None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The container and its first video stream."""
        av = _library(self.name)
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
        try:
            with _handle(self.file, self.name) as handle, av.open(handle, options=options) as container:
                if not container.streams.video:
                    raise InputError(f"{self.name} has no video stream, only {_streams(container)}; give another file.")
                stream = container.streams.video[0]
                if stream.codec_context is None:
                    raise InputError(f"{self.name} is coded in a way that this PyAV cannot read; save it as H.264.")
                stream.codec_context.options = {"max_pixels": str(self.limits.pixels)}
                yield container, stream
        except av.ArgumentError:
            raise InputError(f"{self.name} is not a video that can be read ({_CONTAINERS}, GIF, WebP).") from None
        except (av.FFmpegError, OSError) as error:  # of the file: a seek before an empty one begins
            raise InputError(
                f"{self.name} cannot be read, it may be truncated or broken ({error.strerror or first_line(error)}); "
                "save it anew."
            ) from error


@dataclasses.dataclass(frozen=True)
class _Animation:
    """GIF and WebP."""

    file: str | pathlib.Path | io.BytesIO
    name: str
    limits: VideoLimits

    def info(self) -> VideoInfo:
        count, milliseconds, size = 0, 0, (1, 1)
        for image in self._images():
            count, size = count + 1, image.size
            milliseconds += image.info.get("duration") or _NO_DELAY
            _check(self.name, self.limits, milliseconds / 1000, count, 0)
            if count * image.width * image.height > self.limits.animated:
                raise InputError(
                    f"{self.name} has over {count - 1:,} frames of {image.width * image.height:,} pixels, which takes "
                    "too long to count in an animation; save it as a video."
                )
        return VideoInfo(self.name, count, 1000 * count / milliseconds, *size)

    def decoded(self, wanted: Set[int]) -> Iterator[Image.Image | None]:
        for number, image in enumerate(self._images()):
            yield image.convert("RGB") if number in wanted else None

    def _images(self) -> Iterator[Image.Image]:
        """The one picture object, at each frame in turn."""
        with (
            images.broken_files(self.name, self.limits.pixels, _ANIMATIONS),
            _handle(self.file, self.name) as handle,
            Image.open(handle, formats=_ANIMATIONS) as image,
        ):
            _check(self.name, self.limits, 0, 0, image.width * image.height)
            for number in itertools.count():
                try:
                    image.seek(number)
                except EOFError:
                    return
                image.load()
                yield image


@dataclasses.dataclass(frozen=True)
class _Folder:
    """Pictures in the order of the numbers in their names."""

    folder: pathlib.Path
    name: str
    limits: VideoLimits

    def info(self) -> VideoInfo:
        files = self._files()
        if not files:
            raise InputError(f"{self.name} is a folder without a picture ({', '.join(_STILLS)}); give one of frames.")
        width, height = images.image_size(files[0], self._config)
        return VideoInfo(self.name, len(files), FOLDER_FPS, width, height, first=1)

    def decoded(self, wanted: Set[int]) -> Iterator[Image.Image | None]:
        for number, file in enumerate(self._files()):
            yield images.load_image(file, self._config) if number in wanted else None

    @property
    def _config(self) -> tiling.ImageConfig:
        """Of which only the bound of pixels counts."""
        return tiling.ImageConfig(1, 1, 1, 1, False, False, self.limits.pixels)

    def _files(self) -> list[pathlib.Path]:
        files = []
        for entry in os.scandir(self.folder):
            if entry.name.lower().endswith(_STILLS):
                files.append(pathlib.Path(entry))
                _check(self.name, self.limits, 0, len(files), 0)
        return sorted(files, key=lambda file: [int(part) if part.isdigit() else part for part in _parts(file.name)])


def _parts(name: str) -> list[str]:
    """Letters and digits in turn, beginning with letters: names compare part by part."""
    return re.split(r"([0-9]+)", name)


def _check(name: str, limits: VideoLimits, seconds: float, frames: int, pixels: int) -> None:
    if seconds > limits.seconds:
        raise InputError(
            f"{name} is at least {seconds:,.0f} s long, more than the limit of {limits.seconds:,.0f} s; cut it first."
        )
    if frames > limits.frames:
        raise InputError(f"{name} has over {limits.frames:,} frames, the limit; cut it first.")
    if pixels > limits.pixels:
        raise InputError(f"{name} has frames of {pixels:,} pixels, more than the limit of {limits.pixels:,}; scale it.")


def _handle(file: str | pathlib.Path | io.BytesIO, name: str) -> Any:
    """The file, open at its start; a context manager."""
    if isinstance(file, io.BytesIO):
        return io.BytesIO(file.getbuffer())
    try:
        return open(file, "rb")
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}.") from None


def _library(name: str) -> ModuleType:
    try:
        import av
    except ImportError:
        raise InputError(f"{name} needs PyAV to be read; pip install 'internvl_jax[video]'.") from None
    return av


def _streams(container: Any) -> str:
    kinds = sorted({str(stream.type) for stream in container.streams})
    return " and ".join(kinds) if kinds else "nothing"
