"""Samples read by number: how long they are, and what they hold.

`measure` and `load` count tokens by the same functions, so what was planned from lengths is what is loaded.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from internvl_jax.data.media import images, tiling
from internvl_jax.data.processor import Processor
from internvl_jax.data.reading import sources
from internvl_jax.data.rows.batch import Sample
from internvl_jax.errors import InputError

# Reads a line of an annotation; (line, FILE:LINE, data set).
Parse = Callable[[bytes, str, sources.Dataset], sources.Record]


@dataclasses.dataclass(frozen=True)
class SampleReader:
    """Random access to the samples of a data set. Every error is an `InputError` that starts with FILE:LINE."""

    dataset: sources.Dataset
    offsets: np.ndarray  # int64 [n + 1], from sources.scan_lines
    processor: Processor  # the data set's own tile limit overrides the processor's
    parse: Parse = sources.parse_record

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def name(self, index: int) -> str:
        """FILE:LINE of a sample; lines count from 1."""
        return f"{self.dataset.annotation}:{index + 1}"

    def record(self, index: int) -> sources.Record:
        """The sample as written."""
        line = sources.read_span(self.dataset.annotation, *self.offsets[index : index + 2])
        return self.parse(line, self.name(index), self.dataset)

    def measure(self, index: int, *, trust_notes: bool = True) -> tuple[int, int]:
        """(tokens, tiles) of a sample, from the noted sizes of its images or else from their headers.

        A video has as many tiles as it gets frames; its file is opened if notes aren't trusted."""
        record = self.record(index)
        config = self._image_config(record)
        try:
            if record.footage is not None:
                record.footage.check_there(config, opened=not trust_notes)
                tiles = [1] * record.footage.frames
            else:
                sizes = (_size(record, k, config, trust_notes) for k in range(len(record.images)))
                tiles = [tiling.num_tiles(*size, config) for size in sizes]
            tokens_T, _, _ = self._encode(record, tiles)
        except InputError as error:
            raise InputError(f"{record.name}: {error}") from error
        return len(tokens_T), sum(tiles)

    def load(self, index: int, rng: np.random.Generator) -> Sample:
        """A sample with its pixels; `rng` draws the frames of a video, or the JPEG qualities if the data set is
        augmented (which videos never are, as released)."""
        record = self.record(index)
        config = self._image_config(record)
        try:
            if record.footage is not None:
                tiles = record.footage.tiles(config, rng)
            else:
                tiles = [images.tile_image(images.load_image(path, config), config) for path in record.images]
            tokens_T, supervised_T, starts = self._encode(record, [len(t) for t in tiles])
        except InputError as error:
            raise InputError(f"{record.name}: {error}") from error
        side = self.processor.image_config.tile_size
        tiles_GHWC = np.concatenate([np.zeros((0, side, side, 3), np.uint8), *tiles])
        if self.dataset.data_augment and len(record.images):
            tiles_GHWC = images.random_jpeg(tiles_GHWC, rng)
        counts = tuple(len(part) for part in tiles)
        return Sample(record.name, tokens_T, supervised_T, tiles_GHWC, starts, images=counts)

    def _image_config(self, record: sources.Record) -> tiling.ImageConfig:
        config, limit = self.processor.image_config, self.dataset.max_tiles
        if limit is not None:
            config = tiling.limit_tiles(config, limit)
        return tiling.share_tiles(config, len(record.images))

    def _encode(self, record: sources.Record, tiles: list[int]) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """Tokens and supervision of all texts one after the other, and where each begins."""
        counts = [self.processor.image_config.tokens_per_tile * number for number in tiles]
        encode = self.processor.template.encode_training
        texts = [encode(dialogue, counts, self.processor.tokenizer) for dialogue in record.dialogues]
        lengths = [len(tokens_T) for tokens_T, _ in texts]
        if not all(lengths):
            raise InputError("the sample has no tokens; write something or remove the line.")
        tokens, supervised = zip(*texts, strict=True)
        starts = tuple(np.cumsum([0, *lengths[:-1]]).tolist())
        return np.concatenate(tokens), np.concatenate(supervised), starts


class Corpus:
    """The samples of all data sets under one numbering: those of the first, then those of the second, ..."""

    def __init__(self, readers: list[SampleReader]):
        self.readers = readers
        self._firsts = np.cumsum([0, *(len(reader) for reader in readers)])

    def name(self, number: int) -> str:
        """FILE:LINE of a sample."""
        reader, index = self._locate(number)
        return reader.name(index)

    def load(self, number: int, rng: np.random.Generator) -> Sample:
        """The sample with its pixels."""
        reader, index = self._locate(number)
        return reader.load(index, rng)._replace(number=number)

    def mixture(self) -> np.ndarray:
        """Sample numbers int64 of an epoch before shuffling, see `sources.mixture`."""
        return sources.mixture([reader.dataset for reader in self.readers], [len(reader) for reader in self.readers])

    def _locate(self, number: int) -> tuple[SampleReader, int]:
        which = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return self.readers[which], int(number - self._firsts[which])


def _size(record: sources.Record, number: int, config: tiling.ImageConfig, trust_notes: bool) -> tuple[int, int]:
    # Noted sizes say nothing about EXIF orientation, so with apply_exif the header decides.
    noted = record.sizes[number] if trust_notes and not config.apply_exif else None
    return noted or images.image_size(record.images[number], config)
