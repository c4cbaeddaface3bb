"""Questions to sample answers to, as released: JSONL lines and the parquet file of MMPR-Tiny.

1. `open_prompts` opens a file or all data sets of a meta file; `Prompts` gives any prompt by its number, reading
   nothing but its line (or its row group).
2. `encode_prompt` turns a prompt into the tokens and tiles that `encode_training` and `SampleReader` give the same text
   in training, up to where the answer starts.
3. `screen_prompts` leaves out prompts that are too long, broken, or too easy and too hard for a known accuracy.
   `prompt_stream` orders what is left.

Every error is an `InputError` that starts with FILE:LINE (for parquet the row, from 1).
Source: released `docs/internvl3.0/preference_optimization` (JSONL), the published MMPR-Tiny file (parquet).
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import overload

import msgspec
import numpy as np

from internvl_jax.data.media import images, tiling
from internvl_jax.data.processor import ChatInputs, Processor, check_inputs
from internvl_jax.data.reading import parquet, sources
from internvl_jax.data.reading.footage import Footage, parse_footage, with_frames
from internvl_jax.data.text import templates
from internvl_jax.errors import InputError
from internvl_jax.validation import Fraction, convert, read_lines

_LOG = logging.getLogger(__name__)
_LOG_SECONDS = 10.0
_NAMES_LOGGED = 5  # names that the log gives of the prompts left out for one reason


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One question.

    Attributes:
        name: where it stands, as FILE:LINE.
        system: the system message; None where the chat template's own holds.
        question: the question, with "<image>" where pictures stand; a single picture without one stands in front.
        answer: what graders compare with; "" if the line has none.
        response: a full response that the line brings along ("chosen" of prompts for DropoutNTP), or "".
        pictures: the pictures' paths as written, or their encoded bytes.
        dataset: the data set that it comes from.
        footage: a video in place of pictures, its path as written; `<video>` stands for it in the question.
    """

    name: str
    system: str | None
    question: str
    answer: str
    response: str
    pictures: tuple[str | bytes, ...]
    dataset: sources.Dataset
    footage: Footage | None = None

    def __post_init__(self) -> None:
        for each in self.pictures:
            self._place(each)  # refuses what leads out of the root
        if self.footage is not None:
            sources.resolve(self.footage.path, self.name, self.dataset, "video")

    def _place(self, picture: str | bytes) -> str | bytes:
        return sources.resolve(picture, self.name, self.dataset) if isinstance(picture, str) else picture

    @property
    def images(self) -> tuple[str | bytes, ...]:
        """The pictures, paths resolved against the root."""
        return tuple(self._place(each) for each in self.pictures)

    @property
    def film(self) -> Footage | None:
        """The video, its path resolved against the root."""
        if self.footage is None:
            return None
        path = sources.resolve(self.footage.path, self.name, self.dataset, "video")
        return dataclasses.replace(self.footage, path=path)

    @property
    def key(self) -> str:
        """A digest of what is asked and answered; the same wherever the line and its root are."""
        pictures = [each if isinstance(each, str) else hashlib.sha256(each).hexdigest() for each in self.pictures]
        asked = [pictures, self.system, self.question, self.answer, self.response]
        text = json.dumps(asked if self.footage is None else [*asked, dataclasses.astuple(self.footage)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class LineReader:
    """Prompts of a JSONL file: {"image", "question", "answer"}, or "video" for an image and "chosen" for an answer;
    optional "system_prompt"."""

    dataset: sources.Dataset
    offsets: np.ndarray  # int64 [n + 1], from sources.scan_lines

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def load(self, index: int) -> Prompt:
        """The prompt of a line."""
        line = sources.read_span(self.dataset.annotation, *self.offsets[index : index + 2])
        return parse_prompt(line, f"{self.dataset.annotation}:{index + 1}", self.dataset)


@dataclasses.dataclass(frozen=True)
class RowReader:
    """Prompts of a parquet file."""

    dataset: sources.Dataset
    table: parquet.ParquetTable

    def __len__(self) -> int:
        return len(self.table)

    def load(self, index: int) -> Prompt:
        """The prompt of a row."""
        name = f"{self.dataset.annotation}:{index + 1}"
        row = self.table.row(index)
        return Prompt(name, *parquet.read_prompt(row, name), "", parquet.read_pictures(row, name), self.dataset)


class Prompts(Sequence[Prompt]):
    """The prompts of all data sets under one numbering: those of the first, then those of the second, ..."""

    def __init__(self, readers: Sequence[LineReader | RowReader]):
        self.datasets = tuple(reader.dataset for reader in readers)
        self._readers = tuple(readers)
        self._firsts = np.cumsum([0, *map(len, readers)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @overload
    def __getitem__(self, number: int) -> Prompt: ...

    @overload
    def __getitem__(self, number: slice) -> list[Prompt]: ...

    def __getitem__(self, number: int | slice) -> Prompt | list[Prompt]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        which = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return self._readers[which].load(int(number - self._firsts[which]))

    def mixture(self) -> np.ndarray:
        """Numbers int64 of an epoch before shuffling, see `sources.mixture`."""
        return sources.mixture(self.datasets, [len(reader) for reader in self._readers])


def open_prompts(path: str | os.PathLike, root: str | None = None, allow_outside_root: bool = False) -> Prompts:
    """The prompts of a JSONL or parquet file, or of all data sets of a meta file (.json).

    root: folder of the images of a file given directly; by default its own folder, which they may lie outside of.
    allow_outside_root: whether images may lie outside of a root that is given.

    Raises:
        InputError: if a file cannot be read or is of another kind.
    """
    path = pathlib.Path(path)
    if path.suffix == ".json":
        if root is not None:
            raise InputError(f"meta file {path} names the root of each data set; leave out the root {root}.")
        datasets = sources.read_meta(str(path), allow_outside_root)
    else:
        folder = str(path.parent) if root is None else root
        free = root is None or allow_outside_root
        datasets = (sources.Dataset(path.stem, folder, str(path), False, None, 1, None, allow_outside_root=free),)
    return Prompts([_reader(dataset) for dataset in datasets])


def _reader(dataset: sources.Dataset) -> LineReader | RowReader:
    suffix = pathlib.Path(dataset.annotation).suffix
    if suffix == ".parquet":
        return RowReader(dataset, parquet.ParquetTable(dataset.annotation))
    if suffix == ".jsonl":
        return LineReader(dataset, sources.scan_lines(dataset.annotation, dataset.beside)[0])
    raise InputError(f"{dataset.annotation} is no file of prompts; give .jsonl, .parquet, or a meta file (.json).")


def parse_prompt(line: bytes, name: str, dataset: sources.Dataset) -> Prompt:
    """Checks the form of one line; image files are not looked at.

    Raises:
        InputError: naming the line, if its question is missing or empty, or it has neither answer nor response.
    """
    entry = sources.parse_entry(line, name)
    question = sources.parse_text(entry, "question", name)
    number = entry.get("answer")
    if isinstance(number, int | float) and not isinstance(number, bool):
        entry["answer"] = json.dumps(number)
    response = sources.parse_text(entry, "chosen", name) if entry.get("chosen") is not None else ""
    needed = entry.get("answer") is not None or not response
    answer = sources.parse_text(entry, "answer", name) if needed else ""
    shown = parse_footage(entry, line, name, dataset.frames)
    footage = None if shown is None else Footage(*shown)
    pictures, _ = sources.parse_images(entry, name)
    return Prompt(name, sources.parse_system(entry, name), question, answer, response, pictures, dataset, footage)


def encode_prompt(prompt: Prompt, processor: Processor) -> ChatInputs:
    """Tokens and tiles of a prompt, ready for the model to answer.

    Pictures are placed and share the limit of tiles as in training (the chat interface always puts a newline after a
    picture and gives each the whole limit). Of a video the middle frame of each interval is shown, with lines as the
    released code for MPO writes them.

    Raises:
        InputError: where a picture cannot be read, or pictures and placeholders differ in number.
    """
    config = _image_config(prompt, processor)
    empty_GHWC = np.zeros((0, config.tile_size, config.tile_size, 3), np.uint8)
    try:
        if prompt.film is not None:
            tiles = prompt.film.middle_tiles(config)
        else:
            tiles = [images.tile_image(images.load_image(image, config), config) for image in prompt.images]
        counts = tuple(config.tokens_per_tile * len(tiles_GHWC) for tiles_GHWC in tiles)
        tokens_T = _encode_text(prompt, processor, counts)
        inputs = ChatInputs(tokens_T, np.concatenate([empty_GHWC, *tiles]), counts)
        check_inputs(inputs, config.tokens_per_tile, processor.tokenizer.image_context)
    except InputError as error:
        raise InputError(f"{prompt.name}: {error}") from error
    return inputs


def measure(prompt: Prompt, processor: Processor) -> tuple[int, int]:
    """How many tokens and tiles `encode_prompt` would give, from the headers of the pictures alone. Same errors."""
    config = _image_config(prompt, processor)
    try:
        counts = [tiling.num_image_tokens(*images.image_size(image, config), config) for image in prompt.images]
        if prompt.film is not None:
            prompt.film.check_there(config, opened=False)
            counts = [config.tokens_per_tile] * prompt.film.frames
        return len(_encode_text(prompt, processor, counts)), sum(counts) // config.tokens_per_tile
    except InputError as error:
        raise InputError(f"{prompt.name}: {error}") from error


def encode_blind(prompt: Prompt, processor: Processor, begun: str) -> ChatInputs:
    """The prompt without its pictures and their placeholders, and how the answer starts, for the model to go on."""
    question = prompt.question.replace(templates.PLACEHOLDER, "").replace(templates.VIDEO_PLACEHOLDER, "").strip()
    bare = dataclasses.replace(prompt, question=question, pictures=(), footage=None)
    size = processor.image_config.tile_size
    return ChatInputs(_encode_text(bare, processor, (), begun), np.zeros((0, size, size, 3), np.uint8), ())


def _image_config(prompt: Prompt, processor: Processor) -> tiling.ImageConfig:
    config, limit = processor.image_config, prompt.dataset.max_tiles
    if limit is not None:
        config = tiling.limit_tiles(config, limit)
    return tiling.share_tiles(config, len(prompt.pictures))


def _encode_text(prompt: Prompt, processor: Processor, counts: Sequence[int], begun: str = "") -> np.ndarray:
    # An answer that is taken off again: then text and pictures are placed by the code that training uses.
    turns = [*sources.question_turns(prompt.question, prompt.system), {"from": "gpt", "value": ""}]
    if prompt.footage is not None:
        turns = with_frames(turns, prompt.footage.frames, templates.FRAME_MPO, prompt.name)
    messages = templates.from_released(turns, len(counts))[:-1]
    return processor.template.encode_prompt(messages, counts, processor.tokenizer, begun=begun)


@dataclasses.dataclass(frozen=True)
class Screened:
    """What `screen_prompts` left.

    Attributes:
        numbers: int64, the numbers of the prompts that are left, as in the mixture.
        most_tiles: the most tiles that one of these prompts has.
        digest: a digest of what they ask and of their order.
        too_long: the number of prompts over the limit of tokens or tiles.
        off_accuracy: the number of prompts whose known accuracy is out of bounds.
        broken: for the number of every broken prompt what is wrong with it.
    """

    numbers: np.ndarray
    most_tiles: int
    digest: str
    too_long: int
    off_accuracy: int
    broken: Mapping[int, str]


def screen_prompts(
    prompts: Prompts,
    processor: Processor,
    max_tokens: int,
    accuracies: Mapping[str, float] | None = None,
    bounds: tuple[float, float] = (0.2, 0.8),
    max_tiles: int | None = None,
    answered: bool = False,
) -> Screened:
    """Leaves prompts out, and says so in the log.

    Args:
        max_tokens: the most tokens that a prompt may have with its pictures; longer ones are left out, as released.
        max_tiles: the most tiles that a prompt may have; None for any number.
        answered: whether a prompt without an answer to grade with counts as broken.
        accuracies: known accuracies by `Prompt.key`, see `read_accuracies`; prompts without one stay, as the data sets
            that MMPR-Tiny adds to the filtered ones do.
        bounds: the lowest and the highest accuracy that stays.

    Raises:
        InputError: if nothing is left.
    """
    mixture, logged = prompts.mixture(), time.monotonic()
    long, off, broken, tiles, keys = [], [], {}, {}, {}
    distinct = np.unique(mixture)
    for done, number in enumerate(distinct.tolist()):
        if time.monotonic() - logged > _LOG_SECONDS:
            logged = time.monotonic()
            _LOG.info("screened %d of %d prompts", done, len(distinct))
        try:
            prompt = prompts[number]
            if answered and not prompt.answer:
                raise InputError(f"{prompt.name} has no answer to grade with; add one or remove the line")
            keys[number] = prompt.key
            accuracy = None if accuracies is None else accuracies.get(prompt.key)
            if accuracy is not None and not bounds[0] <= accuracy <= bounds[1]:
                off.append(number)
                continue
            tokens, tiles[number] = measure(prompt, processor)
            if tokens > max_tokens or (max_tiles is not None and tiles[number] > max_tiles):
                long.append(number)
        except InputError as error:
            broken[number] = str(error)
    limits = f"{max_tokens} tokens" if max_tiles is None else f"{max_tokens} tokens or {max_tiles} tiles"
    _warn("broken prompts", list(broken.values()))
    _warn(f"prompts of over {limits}", [prompts[number].name for number in long[:_NAMES_LOGGED]], len(long))
    if off:
        _LOG.info("left out %d prompts with an accuracy outside %g to %g", len(off), *bounds)
    numbers = mixture[~np.isin(mixture, [*long, *off, *broken])]
    if not len(numbers):
        raise InputError(
            f"none of {len(distinct)} prompts is left: {len(broken)} are broken, {len(long)} have over {limits}, "
            f"{len(off)} an accuracy out of bounds; {next(iter(broken.values()), 'see the data')}"
        )
    left = numbers.tolist()
    digest = hashlib.sha256(json.dumps([keys[number] for number in left]).encode()).hexdigest()[:32]
    return Screened(numbers, max(tiles[number] for number in left), digest, len(long), len(off), broken)


def _warn(what: str, names: Sequence[str], count: int | None = None) -> None:
    count = len(names) if count is None else count
    if count:
        _LOG.warning(
            "left out %d %s: %s%s", count, what, "; ".join(names[:_NAMES_LOGGED]), ", ..." * (count > len(names))
        )


class _Accuracy(msgspec.Struct):
    """A line of the file of accuracies."""

    key: str
    accuracy: Fraction | None


def read_accuracies(path: str | os.PathLike) -> dict[str, float]:
    """The file of accuracies that `launch.make_pairs` writes: JSONL of {"key", "accuracy", ...}, by key.

    Raises:
        InputError: if the file cannot be read or a line is not of this form.
    """
    entries = [convert(entry, _Accuracy, where) for where, entry in read_lines(path)]
    return {entry.key: entry.accuracy for entry in entries if entry.accuracy is not None}
