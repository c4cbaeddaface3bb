"""Benchmark tables as VLMEvalKit has them: tab separated, quoted as CSV, pictures in base64 within.

A table is read once from its beginning to its end: what is small is kept, and where each row begins. Pictures stay in
the file, however many gigabytes they are, until one is asked for. Source of the format: VLMEvalKit at e8e78f05,
vlmeval/dataset/image_base.py and smp/file.py.
"""

import ast
import binascii
import collections
import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

from internvl_jax.errors import InputError
from internvl_jax.validation import nearest

Picture = bytes | pathlib.Path  # an encoded file, or where it lies
Naming = Callable[[str, Mapping[str, str]], str]  # of an index and a row's cells

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # columns of options
_IMAGE = "image"
_REFERENCE = 64  # characters; what is no longer names the row that has the picture
_LONGEST_LINE = 1 << 28  # bytes; of a cell in quotes, too
# As pandas has them: in the digits of ASCII (an option in Arabic ones is a text), whole ones of 64 bits.
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# What pandas, which the official code reads tables with, takes for no value.
_ABSENT = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"]
    + ["NULL", "NaN", "None", "n/a", "nan", "null"]
)
_MAYBE_ABSENT = (*LETTERS, _IMAGE, "hint")  # columns where texts of these names stand for nothing


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A question.

    Attributes:
      index: its name, unique in the table.
      cells: texts by column, without the picture; "" is no value.
      offset: where the row begins in the file.
    """

    index: str
    cells: dict[str, str]
    offset: int

    @property
    def options(self) -> dict[str, str]:
        """The texts of the columns A to Z that have one."""
        return {letter: self.cells[letter] for letter in LETTERS if self.cells.get(letter)}


@dataclasses.dataclass(frozen=True)
class BenchmarkTable:
    """A benchmark file.

    Attributes:
      rows: those that have a picture, in the order of the file.
      columns: names in their order.
      md5: of the whole file.
      dropped: how many rows have an empty picture and so are left out.
      holders: for each row with a picture in base64 the offset of the row that holds it.
    """

    path: pathlib.Path
    rows: Sequence[TableRow]
    columns: tuple[str, ...]
    md5: str
    dropped: int
    holders: dict[str, int]

    def pictures(self, row: TableRow, folders: Iterable[pathlib.Path] = ()) -> list[Picture]:
        """The pictures of a row.

        Args:
          folders: where relative paths of pictures may begin, besides the table's own folder.

        Raises:
          InputError: base64 that is none, or a file that is nowhere.
        """
        where = f"{self.path}, row {row.index}"
        if row.index in self.holders:
            with self.path.open("rb") as file:
                file.seek(self.holders[row.index])
                cell = _row(lambda: file.readline(_LONGEST_LINE), where)[self.columns.index(_IMAGE)]
            return [_decoded(part, where) for part in _parts(cell)]
        names = as_list(row.cells.get("image_path", ""))
        return [_found(name, (self.path.parent, *folders), where) for name in names]


def read_table(path: str | os.PathLike, pictures: bool = True, name: Naming | None = None) -> BenchmarkTable:
    """Reads a benchmark file; see the top of this module for what is kept of it.

    Args:
      pictures: whether every question has one: rows without are left out, as the official code does.
      name: what a row is called, if that is more than its index.

    Raises:
      InputError: no such file, no table of questions, an index that stands twice, or no pictures where there must be.
    """
    path, rows, digest = pathlib.Path(path), list[tuple[list[str], int, int]](), hashlib.md5(usedforsecurity=False)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a benchmark file (TSV).")
    try:
        with path.open("rb") as file:
            found = _records(file, digest.update, str(path))
            columns, _, _ = next(found, ([], 0, 0))
            _check_columns(path, columns, pictures)
            rows.extend(found)
    except FileNotFoundError:
        near = nearest(path.name, [each.name for each in path.parent.glob("*.tsv")])
        raise InputError(f"{path} is not there{near}; check the path.") from None
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); check the path.") from None
    for number, (cells, _, _) in enumerate(rows, 1):
        if len(cells) > len(columns):
            raise InputError(f"{path}: row {number} has {len(cells)} cells, but there are {len(columns)} columns.")
    return _table(path, columns, rows, digest.hexdigest(), pictures, name)


def read_cells(path: pathlib.Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of any table, as texts by column.

    Args:
      columns: those that must be there.

    Raises:
      InputError: the file can't be read, or lacks a column.
    """
    try:
        with path.open("rb") as file:
            found = _records(file, lambda _: None, str(path))
            header, _, _ = next(found, ([], 0, 0))
            if missing := [name for name in columns if name not in header]:
                raise InputError(f"{path} has no column {missing[0]!r}; give a table that has it.")
            yield from (dict(zip(header, cells)) for cells, _, _ in found)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); check the path.") from None


def whole_index(index: str) -> str:
    """The name of a row: numbers without leading zeros."""
    return str(int(index)) if _INTEGER.fullmatch(index.strip()) else index


def as_list(cell: str) -> list[str]:
    """The texts of a cell that may be a Python list of texts: `['a', 'b']` or `a`."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell] if cell else []
    try:
        parts = ast.literal_eval(cell)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return [cell]
    return [str(part) for part in parts]


def _check_columns(path: pathlib.Path, columns: Sequence[str], pictures: bool) -> None:
    for name in ("index", "question"):
        if name not in columns:
            raise InputError(f"{path} has no column {name!r}; give a benchmark file (TSV) as VLMEvalKit has them.")
    twice = [name for name, times in collections.Counter(columns).items() if times > 1]
    if twice:
        raise InputError(f"{path} has the column {twice[0]!r} twice; remove one.")
    if pictures and not {_IMAGE, "image_path"} & set(columns):
        raise InputError(f"{path} has no pictures: there is neither a column 'image' nor one 'image_path'.")


def _table(
    path: pathlib.Path,
    columns: list[str],
    rows: list[tuple[list[str], int, int]],
    md5: str,
    pictures: bool,
    name: Naming | None,
) -> BenchmarkTable:
    texts = {column: _as_read(column, [cells[place] for cells, _, _ in rows]) for place, column in enumerate(columns)}
    embedded = texts.pop(_IMAGE, None)
    every = [dict(zip(texts, cells)) for cells in zip(*texts.values())]
    indices = [cells["index"] if name is None else name(cells["index"], cells) for cells in every]
    twice = collections.Counter(indices).most_common(1)
    if twice and twice[0][1] > 1:
        raise InputError(f"{path} has the index {twice[0][0]!r} {twice[0][1]} times; give every row one of its own.")
    offsets = {index: offset for index, (_, offset, size) in zip(indices, rows, strict=True) if size > _REFERENCE}
    kept, holders = [], dict[str, int]()
    for number, (index, cells, (_, offset, _)) in enumerate(zip(indices, every, rows, strict=True)):
        if pictures and embedded is not None:
            if not embedded[number]:
                continue
            named = embedded[number].strip()
            spellings = [named, whole_index(named)]
            spellings += [] if name is None else [name(each, cells) for each in spellings]
            holder = next((each for each in (index, *spellings) if each in offsets), None)
            if holder is None:
                raise InputError(f"{path}, row {index}: there is no picture in row {embedded[number]!r} that it names.")
            holders[index] = offsets[holder]
        kept.append(TableRow(index, cells, offset))
    if not kept:
        raise InputError(f"{path} has no question{' with a picture' if pictures else ''}.")
    return BenchmarkTable(path, kept, tuple(columns), md5, len(rows) - len(kept), holders)


def _as_read(name: str, column: list[str]) -> list[str]:
    """A column as pandas would give it: an index of whole numbers is one of numbers, and so are options."""
    if name in _MAYBE_ABSENT:
        column = ["" if cell in _ABSENT else cell for cell in column]
    present = [cell.strip() for cell in column if cell]
    if not present or (name != "index" and name not in LETTERS):
        return column
    if all(_INTEGER.fullmatch(cell) for cell in present) and (len(present) == len(column)):
        return [str(int(cell)) for cell in column]
    if name != "index" and all(_NUMBER.fullmatch(cell) for cell in present):
        return [str(float(cell)) if cell else "" for cell in column]
    return column


def _records(file: BinaryIO, digest: Callable[[bytes], None], name: str) -> Iterator[tuple[list[str], int, int]]:
    """(cells, offset, bytes of the picture) of every row, the header first; of long pictures the cell is '...'."""
    place, number, columns, offset = -1, 0, 0, 0

    def read() -> bytes:
        nonlocal offset
        line = file.readline(_LONGEST_LINE + 1)
        if len(line) > _LONGEST_LINE:
            raise InputError(f"{name}: row {number} has a line of over {_LONGEST_LINE >> 20} MiB; cut the table up.")
        digest(line)
        offset += len(line)
        return line

    while True:
        start, where = offset, f"{name}: row {number}"
        cells = _row(read, where)
        if not cells:
            return
        size = len(cells[place]) if 0 <= place < len(cells) else 0
        if size > _REFERENCE:
            cells[place] = b"..."
        try:
            texts = [cell.decode() for cell in cells]
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8 ({error.reason}); convert the table.") from None
        if not number:
            texts[0] = texts[0].removeprefix("\ufeff")
            place, columns = texts.index(_IMAGE) if _IMAGE in texts else -1, len(texts)
        elif texts == [""]:  # a blank line
            continue
        yield texts + [""] * (columns - len(texts)), start, size
        number += 1


def _row(read: Callable[[], bytes], where: str) -> list[bytes]:
    """The cells of the next row; [] at the end of the file. Quotes are doubled within quotes, which may span lines."""
    cells, line, at = list[bytes](), read(), 0
    while line:
        quoted, length = list[bytes](), 0
        if line[at : at + 1] == b'"':
            at += 1
            while True:
                end = line.find(b'"', at)
                if end < 0:
                    quoted.append(line[at:])
                    line, at = read(), 0
                    length += len(quoted[-1])
                    if not line or length > _LONGEST_LINE:
                        raise InputError(f"{where} has a quote that never closes; take the file again.")
                    continue
                quoted.append(line[at:end])
                at = end + 1
                if line[at : at + 1] != b'"':
                    break
                quoted.append(b'"')
                at += 1
        end = line.find(b"\t", at)
        rest = line[at:].rstrip(b"\r\n") if end < 0 else line[at:end]
        cells.append(b"".join([*quoted, rest]))
        if end < 0:
            break
        at = end + 1
    return cells


def _parts(cell: bytes) -> list[bytes]:
    """The base64 texts of a cell: one, or a list in quotes, whose commas can't be theirs."""
    cell = cell.strip()
    if not (cell.startswith(b"[") and cell.endswith(b"]")):
        return [cell]
    return [part.strip().strip(b"'\"") for part in cell[1:-1].split(b",") if part.strip()]


def _decoded(text: bytes, where: str) -> bytes:
    try:
        return binascii.a2b_base64(text)
    except binascii.Error as error:
        raise InputError(f"{where}: the picture is not base64 ({error}); take the file again.") from None


def _found(name: str, folders: Sequence[pathlib.Path], where: str) -> pathlib.Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    looked = ", ".join(map(str, folders))
    raise InputError(f"{where}: the picture {name} is not there (looked in {looked}); give its folder as --images.")
