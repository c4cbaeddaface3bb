"""The released data format: a meta JSON that lists data sets, and JSONL annotations with one sample a line.

1. `read_meta` reads `{"name": {"root", "annotation", "repeat_time", ...}}` into `Dataset`s; unknown keys are errors.
2. `scan_lines` finds where the lines of an annotation start, so that any sample is read by one seek.
3. `parse_record` turns a line into a `Record`: its conversation, the paths of its images and their noted sizes, or its
   video.

Every error is an `InputError` that names the file, and the line where there is one.
Source: released `docs/chat_data_format` and `internvl_chat_finetune.py` (`LazySupervisedDataset`).
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from internvl_jax.data.media import tiling
from internvl_jax.data.media.video_options import FrameCount
from internvl_jax.data.reading.footage import Footage, parse_footage, with_frames
from internvl_jax.data.text.templates import FRAME_SFT
from internvl_jax.errors import InputError
from internvl_jax.validation import (
    CountOrZero,
    Fields,
    FilePath,
    check_value,
    nearest,
    parse_json,
    read_json,
    shown,
)

_META_KEYS = (
    *("root", "annotation", "data_augment", "max_dynamic_patch", "repeat_time", "length"),
    *("min_num_frame", "max_num_frame"),
)
_BLOCK_BYTES = 1 << 24
_MOST_SAMPLES = 2**28  # of a data set in an epoch: twice the largest published mixture; each takes 8 bytes
_Repeats = Annotated[float, Meta(gt=0, le=10_000)]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One entry of a meta file, its paths found (`read_meta`)."""

    name: str
    root: str  # folder of the images
    annotation: str  # JSONL file
    data_augment: bool  # random JPEG compression of the tiles
    max_tiles: int | None  # `max_dynamic_patch`, overrides the run's tile limit
    repeat_time: float
    length: int | None  # number of samples that the file is said to have
    beside: str = dataclasses.field(default="", compare=False)  # where the annotation was looked for too
    allow_outside_root: bool = False  # whether images may lie elsewhere
    frames: tuple[int, int] = (8, 32)  # the fewest and the most that a video gets


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample as written in the annotation, checked for form; `name` is FILE:LINE."""

    name: str
    dialogues: tuple[list[dict[str, str]], ...]  # of {"from", "value"}; several are about the same images
    images: tuple[str, ...]  # paths
    sizes: tuple[tuple[int, int] | None, ...]  # noted (width, height) of each image
    footage: Footage | None = None  # a video, in place of images; its lines of frames stand in the dialogues


def read_meta(path: str, allow_outside_root: bool = False) -> tuple[Dataset, ...]:
    """The data sets of a meta file, in its order; images lie below their roots unless allowed elsewhere.

    Relative paths count from the working directory, as in the release, or, where nothing is there, from the folder of
    the meta file.

    Raises:
        InputError: if the file cannot be read or an entry is not as it should be.
    """
    meta = read_json(path, 'give a meta file, {"name": {"root": ..., "annotation": ...}}', unique=True)
    if not meta:
        raise InputError(f"{path} lists no data set; add one.")
    return tuple(_dataset(path, name, entry, allow_outside_root) for name, entry in meta.items())


def scan_lines(path: str, beside: str = "") -> tuple[np.ndarray, str]:
    """Byte offsets int64 [n + 1] of the n lines of a file (blank lines at the end left out), and its SHA-256.

    beside: where it was looked for too, for the error.
    """
    digest, starts, size, last = hashlib.sha256(), [np.zeros(1, np.int64)], 0, b"\n"
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                starts.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + size + 1)
                size, last = size + len(block), block[-1:]
            if last != b"\n":
                starts.append(np.array([size]))
            offsets = np.concatenate(starts)
            while len(offsets) > 1 and not read_span(path, *offsets[-2:]).strip():
                offsets = offsets[:-1]
    except OSError as error:
        also = f", nor is {beside} there" if beside not in ("", path) else ""
        raise InputError(f"annotation file {path} cannot be read: {error.strerror}{also}.") from error
    if len(offsets) == 1:
        raise InputError(f"annotation file {path} has no samples; write one JSON object a line or leave it out.")
    return offsets, digest.hexdigest()


def read_span(path: str, start: int, end: int) -> bytes:
    """Bytes start..end of a file."""
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(end - start)


def parse_record(line: bytes, name: str, dataset: Dataset) -> Record:
    """Checks the form of one line and resolves its image paths; what turns say is left to the chat template.

    Raises:
        InputError: naming the line, if it is no sample of a known form.
    """
    entry = parse_entry(line, name)
    conversations = _conversations(entry, name)
    return record_of(entry, line, name, dataset, (conversations,), FRAME_SFT)


def record_of(
    entry: dict, line: bytes, name: str, dataset: Dataset, dialogues: tuple[list[dict[str, str]], ...], head: str
) -> Record:
    """The record of a line and its dialogues, paths of its images or its video resolved.

    head: how the lines of a video's frames begin.

    Raises:
        InputError: naming the line, if images or video are not of a known form.
    """
    found = parse_footage(entry, line, name, dataset.frames)
    if found is not None:
        path, frames, clip = found
        footage = Footage(resolve(path, name, dataset, "video"), frames, clip)
        return Record(name, tuple(with_frames(turns, frames, head, name) for turns in dialogues), (), (), footage)
    images, sizes = parse_images(entry, name)
    return Record(name, dialogues, tuple(resolve(path, name, dataset) for path in images), sizes)


def parse_entry(line: bytes, name: str) -> dict:
    """The JSON object of one line, of whatever kind the sample is.

    Raises:
        InputError: naming the line, if it is none.
    """
    entry = parse_json(line, name)
    if not isinstance(entry, dict):
        raise InputError(f"{name} is {shown(entry)}; a sample is a JSON object.")
    return entry


def parse_images(entry: dict, name: str) -> tuple[tuple[str, ...], tuple[tuple[int, int] | None, ...]]:
    """The image paths of a line as written, none to several, and the (width, height) noted for each.

    Raises:
        InputError: naming the line, if they are not of a known form.
    """
    image = entry.get("image") or []
    images = [image] if isinstance(image, str) else image
    if not isinstance(images, list) or not all(isinstance(path, str) for path in images):
        raise InputError(f'{name} has an "image" that is neither a path nor a list of paths.')
    for path in images:
        check_value(path, FilePath, f"{name}: image")
    return tuple(images), _sizes(entry, image, name)


def resolve(path: str, name: str, dataset: Dataset, what: str = "image") -> str:
    """An image path of a line, from the root of its data set on. what: for the error, if it is another file.

    Raises:
        InputError: naming the line, if it leads out of a root that is given (by .. or as an absolute path).
    """
    whole = os.path.join(dataset.root, path)
    if dataset.root and not dataset.allow_outside_root:
        root = os.path.abspath(dataset.root)
        if os.path.commonpath([root, os.path.abspath(whole)]) != root:
            raise InputError(
                f"{name} has the {what} {path!r}, which is not below the root {dataset.root!r}; correct the line, or "
                "set allow_outside_root if you trust the file."
            )
    return whole


def parse_text(entry: dict, key: str, name: str) -> str:
    """A text of a line that may not be missing or blank.

    Raises:
        InputError: naming the line.
    """
    text = entry.get(key)
    if not isinstance(text, str):
        raise InputError(f'{name} has no text "{key}"; write it or remove the line.')
    if not text.strip():
        raise InputError(f'{name} has an empty "{key}"; write it or remove the line.')
    return text


def parse_system(entry: dict, name: str) -> str | None:
    """The system text of a line that has a question; None where the chat template's own holds.

    Raises:
        InputError: naming the line.
    """
    system = entry.get("system_prompt")
    if system is not None and not isinstance(system, str):
        raise InputError(f'{name} has a "system_prompt" that is no text; write one or leave it out.')
    return system


def question_turns(question: str, system: str | None) -> list[dict[str, str]]:
    """A question as released turns; system is None where the chat template's own holds."""
    turns = [] if system is None else [{"from": "system", "value": system}]
    return [*turns, {"from": "human", "value": question}]


def mixture(datasets: Sequence[Dataset], sizes: Sequence[int]) -> np.ndarray:
    """Numbers int64 of an epoch before shuffling, over the samples of all data sets: each `repeat_time` times.

    As in the release a fraction takes samples from the start of the file; there 2.5 means 2, here it means twice
    all and once the first half.
    """
    parts, first = [], 0
    for dataset, size in zip(datasets, sizes, strict=True):
        if size * dataset.repeat_time > _MOST_SAMPLES:
            raise InputError(
                f"data set {dataset.name!r} has {size} samples, which repeat_time {dataset.repeat_time:g} makes more "
                f"than {_MOST_SAMPLES:,} an epoch; lower it."
            )
        count = int(size * dataset.repeat_time)
        if not count:
            raise InputError(
                f"data set {dataset.name!r} has {size} samples, of which repeat_time {dataset.repeat_time} leaves "
                "none; raise it or remove the data set."
            )
        parts.append(first + np.arange(count) % size)
        first += size
    return np.concatenate(parts)


def _dataset(path: str, name: str, entry: Any, allow_outside_root: bool) -> Dataset:
    fields = Fields(path, f"data set {name!r}", entry)
    if not isinstance(entry, dict):
        raise InputError(f'{path}: {fields.name} is {shown(entry)}; it must be an object with "root" and "annotation".')
    if unknown := sorted(entry.keys() - set(_META_KEYS)):
        hint = nearest(unknown[0], _META_KEYS)
        raise InputError(
            f"{path}: {fields.name} has an unknown key {unknown[0]!r}{hint}; known are {', '.join(_META_KEYS)}."
        )
    annotation, root = fields.get("annotation", FilePath), fields.get("root", FilePath)
    beside, folder = os.path.join(os.path.dirname(path), annotation), os.path.join(os.path.dirname(path), root)
    moved = not os.path.exists(annotation) and os.path.exists(beside)
    return Dataset(
        name=name,
        # A root that says nothing is the folder that the annotation's path counts from.
        root=folder if (not os.path.exists(root) and os.path.exists(folder) if root else moved) else root,
        annotation=beside if moved else annotation,
        data_augment=fields.optional("data_augment", bool, False),
        max_tiles=fields.optional("max_dynamic_patch", tiling.Tiles),
        repeat_time=fields.optional("repeat_time", _Repeats, 1),
        length=fields.optional("length", CountOrZero),
        allow_outside_root=allow_outside_root,
        beside=beside,
        frames=_frame_bounds(fields),
    )


def _frame_bounds(fields: Fields) -> tuple[int, int]:
    fewest, most = Dataset.frames
    fewest = fields.optional("min_num_frame", FrameCount, fewest)
    most = fields.optional("max_num_frame", FrameCount, max(most, fewest))
    if fewest > most:
        raise InputError(
            f"{fields.file}: {fields.name} has min_num_frame {fewest}, over its max_num_frame {most}; lower it."
        )
    return fewest, most


def _conversations(entry: dict, name: str) -> list[dict[str, str]]:
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise InputError(f'{name} has no "conversations"; give a list of {{"from", "value"}} turns.')
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("from", "value")):
            raise InputError(f'{name} turn {number} must be an object with the texts "from" and "value".')
    return [{"from": turn["from"], "value": turn["value"]} for turn in turns]


def _sizes(entry: dict, image: str | list[str], name: str) -> tuple[tuple[int, int] | None, ...]:
    if isinstance(image, str):
        widths, heights = [entry.get("width")], [entry.get("height")]
    else:
        none = [None] * len(image)
        widths, heights = (entry.get(key) or none if image else none for key in ("width_list", "height_list"))
        if not (isinstance(widths, list) and isinstance(heights, list) and len(widths) == len(heights) == len(image)):
            raise InputError(f'{name} has a "width_list" or "height_list" without one number for each of its images.')
    return tuple(
        (width, height) if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0 else None
        for width, height in zip(widths, heights, strict=True)
    )
