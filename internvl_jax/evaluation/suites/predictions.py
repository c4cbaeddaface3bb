"""Answers to a benchmark file, as they are written and read back.

While answers are being written they stand in NAME.jsonl.partial, one a line, whole batches at a time. What a kill cut
off is written anew, so the file is that of an uninterrupted run; it gets its name when all are there.
NAME.settings.json says what they depend on.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from internvl_jax.errors import InputError
from internvl_jax.evaluation.suites.tsv import read_cells
from internvl_jax.files import whole_file
from internvl_jax.validation import convert, differences, first_line, parse_json, read_file, read_json

_COLUMNS = ("index", "prediction")
_QUESTION = "question"  # a column that need not be there
# What openpyxl raises for files that are broken in one way or another; a ParseError of XML is a SyntaxError.
_BROKEN = (OSError, ValueError, LookupError, TypeError, SyntaxError, EOFError, zipfile.BadZipFile, zlib.error)


class Prediction(msgspec.Struct, omit_defaults=True):
    """An answer.

    Attributes:
      index: of its row.
      prediction: what is scored.
      response: all that the model wrote, where that is more.
      tokens: how many tokens it wrote; 0 where that is not known.
      truncated: whether it ended because it may have no more.
      suite: that it is an answer to; "" where that is not known.
      question: that it is an answer to; "" where that is not known.
    """

    index: str
    prediction: str
    response: str = ""
    tokens: int = 0
    truncated: bool = False
    suite: str = ""
    question: str = ""


@dataclasses.dataclass(frozen=True)
class PredictionFile:
    """Answers that are being written.

    Attributes:
      path: where they will be.
      settings: what they depend on; answers that were begun with others are not taken up.
    """

    path: pathlib.Path
    settings: Mapping[str, Any]

    @property
    def partial(self) -> pathlib.Path:
        return self.path.with_name(f"{self.path.name}.partial")

    def write(
        self,
        indices: Sequence[str],
        answer: Callable[[Sequence[str]], Sequence[msgspec.Struct]],
        batch: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Asks for the answers that are missing, a batch at a time, and gives the file its name.

        Args:
          indices: of all rows, in their order; batches are cut from it.
          answer: gives the answers to a batch's rows.
          progress: called with the number of answers that are there.

        Raises:
          InputError: other settings began the file, or nothing says which.
        """
        self.claim()
        if self.path.exists():
            return
        begun = self.partial.read_bytes().split(b"\n")[:-1] if self.partial.exists() else []
        kept = len(begun) // batch * batch  # without what a kill left behind the last whole batch
        with self.partial.open("ab") as file:
            file.truncate(sum(len(line) + 1 for line in begun[:kept]))
            for start in range(kept, len(indices), batch):
                if progress is not None:
                    progress(start)
                found = answer(indices[start : start + batch])
                file.write(b"".join(msgspec.json.encode(each) + b"\n" for each in found))
                file.flush()
                os.fsync(file.fileno())
        if progress is not None:
            progress(len(indices))
        self.partial.replace(self.path)

    def claim(self) -> None:
        """Writes what the answers depend on beside them, or holds it against what began them.

        Raises:
          InputError: other settings began the file.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        path, settings = self.path.with_suffix(".settings.json"), json.loads(json.dumps(self.settings))
        if not path.exists():
            if self.path.exists():
                raise InputError(f"{self.path} is there, but not {path.name}, which says how; give another --out.")
            self.partial.unlink(missing_ok=True)
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        begun = read_json(path, "remove it to start anew")
        if changed := differences(begun, settings, "", ("before", "now")):
            raise InputError(f"{self.path} was begun otherwise ({changed[0]}); give another --out.")


def read_predictions(path: str | os.PathLike, suite: str = "") -> dict[str, Prediction]:
    """Answers by index, from {index: prediction} JSON, a list of records, our JSONL, a tsv or an xlsx file.

    Args:
      suite: the name of the one that they are to; "" takes any.

    Raises:
      InputError: the file can't be read, has other contents, an index twice, or answers to another suite.
    """
    path = pathlib.Path(path)
    readers = {".json": _from_json, ".jsonl": _from_lines, ".tsv": _from_tsv, ".xlsx": _from_xlsx}
    if path.suffix not in readers:
        raise InputError(f"{path} is no file of predictions that can be read; give .json, .jsonl, .tsv or .xlsx.")
    found = dict[str, Prediction]()
    for where, each in readers[path.suffix](path):
        if suite and each.suite not in ("", suite):
            raise InputError(f"{where} is an answer to {each.suite}, not to {suite}; give its own predictions.")
        if each.index in found:
            raise InputError(f"{where}: the index {each.index!r} stands there twice; remove one.")
        found[each.index] = each
    if not found:
        raise InputError(f"{path} has no predictions.")
    return found


def _from_json(path: pathlib.Path) -> Iterator[tuple[str, Prediction]]:
    value = parse_json(read_file(path), str(path), unique=True)
    if isinstance(value, dict):
        yield from ((str(path), Prediction(index, _text(text))) for index, text in value.items())
        return
    if not isinstance(value, list):
        raise InputError(f"{path} holds no predictions; give an object of them by index, or a list of records.")
    for number, record in enumerate(value):
        where = f"{path}, record {number}"
        if not isinstance(record, dict) or not set(_COLUMNS) <= record.keys():
            raise InputError(f"{where} lacks 'index' or 'prediction'; add it.")
        yield where, _of_record(record)


def _from_lines(path: pathlib.Path) -> Iterator[tuple[str, Prediction]]:
    for number, line in enumerate(read_file(path).split(b"\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, convert(parse_json(line, where), Prediction, where)


def _from_tsv(path: pathlib.Path) -> Iterator[tuple[str, Prediction]]:
    for number, record in enumerate(read_cells(path, _COLUMNS), 1):
        yield f"{path}, row {number}", _of_record(record)


def _from_xlsx(path: pathlib.Path) -> Iterator[tuple[str, Prediction]]:
    try:
        import openpyxl
    except ImportError:
        raise InputError("reading xlsx needs the library openpyxl: pip install 'internvl_jax[evaluate]'") from None
    try:
        with path.open("rb") as file, contextlib.closing(openpyxl.load_workbook(file, read_only=True)) as book:
            rows = [list(row) for row in book.active.iter_rows(values_only=True)]
    except FileNotFoundError:
        raise InputError(f"{path} is not there; check the path.") from None
    except _BROKEN as error:
        raise InputError(f"{path} can't be read as xlsx ({first_line(error)}); save it again.") from None
    header = [_text(cell) for cell in rows[0]] if rows else []
    if missing := [name for name in _COLUMNS if name not in header]:
        raise InputError(f"{path} has no column {missing[0]!r}; give a file of predictions.")
    for number, row in enumerate(rows[1:], 2):
        record = dict.fromkeys(_COLUMNS) | dict(zip(header, row))
        if record["index"] is not None:
            yield f"{path}, row {number}", _of_record(record)


def _of_record(record: Mapping[str, Any]) -> Prediction:
    index = record["index"]
    whole = int(index) if isinstance(index, float) and index.is_integer() else index  # as spreadsheets may have it
    return Prediction(_text(whole), _text(record["prediction"]), question=_text(record.get(_QUESTION)))


def _text(value: Any) -> str:
    """A cell as text: numbers as Python writes them, nothing as nothing."""
    return "" if value is None else str(value)
