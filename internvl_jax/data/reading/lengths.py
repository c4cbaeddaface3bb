"""The length index: tokens and tiles of every sample of a data set, computed once and kept on disk.

1. The cache file is named by a digest of everything that lengths depend on: the annotation (path, size, time of
   change), the image root, the tokenizer, the chat template and the image options. Other options are another file.
2. Without it the annotation is scanned and every sample measured; images are not decoded.
3. A sample that cannot be measured has 0 tokens and a reason. Those, and only those, are tried again next time.
4. The file is written under a temporary name and renamed.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import tempfile
import time

import numpy as np

from internvl_jax.data.processor import Processor
from internvl_jax.data.reading import samples, sources
from internvl_jax.errors import InputError
from internvl_jax.validation import read_arrays

_LOG = logging.getLogger(__name__)
_FORMAT = 1  # raise it when samples of the same files get other lengths
_LOG_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class LengthIndex:
    """Lengths of the n samples of a data set."""

    offsets: np.ndarray  # int64 [n + 1], byte offsets of the lines
    tokens: np.ndarray  # int32 [n]; 0 where the sample is broken
    tiles: np.ndarray  # int32 [n]
    digest: str  # SHA-256 of the annotation file
    broken: dict[int, str]  # sample -> what is wrong with it


def length_index(
    dataset: sources.Dataset,
    processor: Processor,
    cache_dir: str | None,
    parse: samples.Parse = sources.parse_record,
) -> LengthIndex:
    """The length index of a data set, from `cache_dir` if it is there; with None nothing is kept.

    parse: reads a line, see `samples.SampleReader`.

    Raises:
        InputError: if the annotation cannot be read or the index cannot be written.
    """
    path = None
    index = None
    if cache_dir is not None:
        path = pathlib.Path(cache_dir) / f"lengths-{_key(dataset, processor, parse)}.npz"
        index = _read(path)
    if index is None:
        offsets, digest = sources.scan_lines(dataset.annotation, dataset.beside)
        unknown = np.zeros(len(offsets) - 1, np.int32)
        index = LengthIndex(offsets, unknown, unknown.copy(), digest, {})
    if index.tokens.all():
        return index
    before = np.count_nonzero(index.tokens)
    index = _measure_missing(index, samples.SampleReader(dataset, index.offsets, processor, parse))
    if path is not None and np.count_nonzero(index.tokens) > before:
        _write(path, index)
    return index


def _key(dataset: sources.Dataset, processor: Processor, parse: samples.Parse) -> str:
    try:
        status = os.stat(dataset.annotation)
    except OSError as error:
        raise InputError(f"annotation file {dataset.annotation} cannot be read: {error.strerror}.") from error
    parts = [
        _FORMAT,
        parse.__name__,
        os.path.abspath(dataset.annotation),
        status.st_size,
        status.st_mtime_ns,
        os.path.abspath(dataset.root),
        dataset.allow_outside_root,
        dataset.max_tiles,
        dataset.frames,
        processor.tokenizer.digest,
        dataclasses.asdict(processor.image_config),
        dataclasses.asdict(processor.template),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _measure_missing(index: LengthIndex, reader: samples.SampleReader) -> LengthIndex:
    tokens, tiles, broken = index.tokens.copy(), index.tiles.copy(), {}
    missing = np.flatnonzero(tokens == 0)
    logged = time.monotonic()
    for done, number in enumerate(missing.tolist()):
        try:
            tokens[number], tiles[number] = reader.measure(number)
        except InputError as error:
            broken[number] = str(error)
        if time.monotonic() - logged > _LOG_SECONDS:
            logged = time.monotonic()
            _LOG.info("measured %d of %d samples of %s", done + 1, len(missing), reader.dataset.annotation)
    return dataclasses.replace(index, tokens=tokens, tiles=tiles, broken=broken)


def _read(path: pathlib.Path) -> LengthIndex | None:
    if not path.exists():
        return None
    try:
        found = read_arrays(path, {"offsets": "i1", "tokens": "i1", "tiles": "i1", "digest": "U0"})
        if not len(found["offsets"]) - 1 == len(found["tokens"]) == len(found["tiles"]):
            raise InputError("its arrays are of different lengths")
    except InputError as error:
        _LOG.warning("length index %s cannot be used (%s); it is computed anew", path, error)
        return None
    return LengthIndex(found["offsets"], found["tokens"], found["tiles"], str(found["digest"]), {})


def _write(path: pathlib.Path, index: LengthIndex) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
            temporary = pathlib.Path(file.name)
            np.savez(file, offsets=index.offsets, tokens=index.tokens, tiles=index.tiles, digest=index.digest)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"length index {path} cannot be written: {error.strerror}; free space or choose another folder."
        ) from error
