"""Writing a checkpoint: all of it appears under its name, or nothing does."""

import contextlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from checkpoint_convert.source import CHECKSUMS, INDEX, TYPE_NAMES
from internvl_jax.errors import InputError
from internvl_jax.files import whole_folder
from internvl_jax.sharding import checksum

# Bytes of tensors in a file, at most; what the Hub recommends, and what the released checkpoints keep to.
MAX_SHARD = 5_000_000_000
_CHECKED = 1 << 26  # bytes with a checksum, at most: whoever compares it maps as many


@contextlib.contextmanager
def whole_or_nothing(destination: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """A `whole_folder` that needs `size` bytes at least.

    Raises:
      InputError: see `whole_folder`; or the disk has no room for it.
    """
    with whole_folder(destination) as partial:
        free = shutil.disk_usage(partial).free
        if free < size:
            raise InputError(
                f"the disk of {destination} has {free / 1e6:,.1f} MB free but {size / 1e6:,.1f} MB are to be written; "
                "make room or choose another --dst"
            )
        yield partial


class SafetensorsWriter:
    """Safetensors files whose tensors are written in any order, by any thread, in pieces; use as a context manager.

    The headers are written first, from names, shapes and dtypes, so nothing waits for a file to be complete. Checksums
    of the pieces go into a file of their own.

    Args:
      directory: where `STEM.safetensors` goes, or several numbered files and their index.
      specs: shape and dtype of every tensor, by name.
      stem: what the files are called.
    """

    def __init__(self, directory: pathlib.Path, specs: Mapping[str, jax.ShapeDtypeStruct], stem: str = "model"):
        self._places: dict[str, tuple[int, int, int]] = {}  # name -> file, offset, bytes of one row
        self._files: list[int] = []
        self._directory = directory
        self._checksums: dict[str, list[tuple[int, int, str]]] = {name: [] for name in specs}
        groups = _groups(specs)
        weight_map: dict[str, str] = {}
        for i, group in enumerate(groups):
            name = f"{stem}.safetensors" if len(groups) == 1 else f"{stem}-{i + 1:05}-of-{len(groups):05}.safetensors"
            weight_map |= dict.fromkeys(group, name)
            self._files.append(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            self._write_header(self._files[-1], {tensor: specs[tensor] for tensor in group})
        if len(groups) > 1:
            total = sum(_nbytes(spec) for spec in specs.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(directory / INDEX, index)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        for file in self._files:
            if kind is None:
                os.fsync(file)
            os.close(file)
        if kind is None:
            noted = {name: sorted(pieces) for name, pieces in self._checksums.items()}
            write_json(self._directory / CHECKSUMS, noted, indent=None)

    def write(self, name: str, first_row: int, array: np.ndarray) -> None:
        """Rows of a tensor from `first_row` on; a tensor without axes has one row."""
        file, offset, row = self._places[name]
        pieces = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, len(pieces), _CHECKED):
            piece = pieces[start : start + _CHECKED]
            self._checksums[name].append((first_row * row + start, len(piece), f"{checksum(piece):x}"))
        data, offset = pieces.data, offset + first_row * row
        while data:
            written = os.pwrite(file, data, offset)
            data, offset = data[written:], offset + written

    def _write_header(self, file: int, specs: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers wants to be told whose it is
        end = 0
        for name, spec in specs.items():
            start, end = end, end + _nbytes(spec)
            header[name] = {
                "dtype": TYPE_NAMES[np.dtype(spec.dtype)],
                "shape": list(spec.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        os.pwrite(file, len(text).to_bytes(8, "little") + text, 0)
        os.ftruncate(file, 8 + len(text) + end)
        for name, spec in specs.items():
            rows = spec.shape[0] if spec.shape else 1
            place = 8 + len(text) + header[name]["data_offsets"][0]
            self._places[name] = (file, place, _nbytes(spec) // rows if rows else 0)


def write_json(file: pathlib.Path, values: Mapping[str, Any], indent: int | None = 2) -> None:
    file.write_text(json.dumps(values, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def _groups(specs: Mapping[str, jax.ShapeDtypeStruct]) -> list[list[str]]:
    """The tensors of each file: in the order of layers; in a file the widest types first, which keeps all aligned."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in sorted(specs, key=_numbers_as_numbers):
        if groups[-1] and size + _nbytes(specs[name]) > MAX_SHARD:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += _nbytes(specs[name])
    return [sorted(group, key=lambda name: -specs[name].dtype.itemsize) for group in groups]


def _numbers_as_numbers(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _nbytes(spec: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * spec.dtype.itemsize
