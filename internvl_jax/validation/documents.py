"""Files from outside: JSON with its limits, and archives of arrays.

UTF-8, with or without a byte order mark; only "\\n" ends a line. Halves of surrogate pairs, NaN, numbers beyond float64
and deep nesting are refused.
"""

import functools
import json
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from internvl_jax.errors import InputError
from internvl_jax.validation.words import first_line, nearest

MAX_DEPTH = 64  # of nested lists and objects
_ADVICE = "check the path"
# What numpy raises for archives that are damaged in one way or another.
_DAMAGE = (
    *(OSError, EOFError, KeyError, TypeError, ValueError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
_NESTED = (dict, list)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parse_json(text: bytes, where: str, *, unique: bool = False) -> Any:
    """The value of a JSON document.

    Args:
      where: what an error begins with, as FILE:LINE.
      unique: refuse objects that have a name twice; otherwise the last one counts.

    Raises:
      InputError: it is no JSON as described above.
    """
    text = text.removeprefix(_BYTE_ORDER_MARK)
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        raise InputError(f"{where} is nested more than {MAX_DEPTH} deep; flatten it.") from None
    except (ValueError, msgspec.MsgspecError) as error:
        raise InputError(f"{where} is not valid JSON: {_wrong_text(text) or first_line(error)}.") from None
    if _deeper(value, MAX_DEPTH):
        raise InputError(f"{where} is nested more than {MAX_DEPTH} deep; flatten it.")
    if unique:
        json.loads(text, object_pairs_hook=functools.partial(_refuse_repeated, where))
    return value


def read_json(path: str | os.PathLike, advice: str = _ADVICE, *, unique: bool = False) -> dict[str, Any]:
    """The JSON object of a file; `advice` says what to do where it can't be read.

    Raises:
      InputError: the file can't be read, is no JSON as described above, or holds something else than an object.
    """
    value = parse_json(read_file(path, advice), str(path), unique=unique)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {_kind(value)}, not a JSON object; {advice}.")
    return value


def read_lines(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """('FILE:LINE', JSON value) of every line that isn't blank. Lines end with "\\n" alone: texts may hold others.

    Raises:
      InputError: the file can't be read, or a line is no JSON as described above.
    """
    for number, line in enumerate(read_file(path).split(b"\n"), 1):
        if line.strip():
            yield f"{path}:{number}", parse_json(line, f"{path}:{number}")


def read_file(path: str | os.PathLike, advice: str = _ADVICE) -> bytes:
    """The bytes of a file; InputError where it can't be read."""
    try:
        return pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is not there{_nearest_path(pathlib.Path(path))}; {advice}.") from None
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); {advice}.") from None
    except ValueError as error:  # a NUL in the path
        raise InputError(f"{str(path)!r} is no path of a file: {error}.") from None


def read_arrays(path: str | os.PathLike, kinds: Mapping[str, str], optional: Mapping[str, str] = {}) -> dict[str, Any]:
    """Arrays of an npz archive.

    Args:
      kinds: for the name of every array that must be there the letter of `numpy.dtype.kind` ('i', 'f', 'b', 'U') and
        its number of axes, as 'i2'.
      optional: the same for arrays that may be there.

    Raises:
      InputError: the archive can't be read, lacks an array, or has one of another kind.
    """
    wanted, found = {**kinds, **optional}, read_all_arrays(path)
    if missing := sorted(kinds.keys() - found.keys()):
        raise InputError(f"{path} has no array {missing[0]!r}; take the whole file again.")
    found = {name: found[name] for name in wanted if name in found}
    for name, array in found.items():
        if (kind := f"{array.dtype.kind}{array.ndim}") != wanted[name]:
            raise InputError(f"{path} has {name} of kind {kind} instead of {wanted[name]}.")
    return found


def read_all_arrays(path: str | os.PathLike, advice: str = _ADVICE) -> dict[str, np.ndarray]:
    """All arrays of an npz archive; InputError where it can't be read, with what to do then."""
    try:
        # Python objects stay unread: they would be unpickled. np.load leaves the file open where it is broken.
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{path} is not there; {advice}.") from None
    except _DAMAGE as error:
        raise InputError(f"{path} can't be read ({first_line(error)}); {advice}.") from error


def _deeper(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, _NESTED) else []
    for _ in range(limit - 1):
        level = [
            each
            for part in level
            for each in (part.values() if isinstance(part, dict) else part)
            if isinstance(each, _NESTED)
        ]
        if not level:
            return False
    return any(level)


def _wrong_text(text: bytes) -> str | None:
    """What is wrong with JSON that is not UTF-8, or where some tool cut a character beyond 16 bits in two."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return f"it is not UTF-8, as byte {text[error.start]:#x} at position {error.start} shows"
    try:
        half = re.search("[\ud800-\udfff]", json.dumps(json.loads(text), ensure_ascii=False))
    except (ValueError, RecursionError):
        return None
    return f"it has the half of a surrogate pair, {half.group()!a}" if half else None


def _refuse_repeated(where: str, pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise InputError(f"{where}: {name!r} stands there twice; remove one.")
        seen.add(name)


def _kind(value: Any) -> str:
    words = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return words.get(type(value), "a number")


def _nearest_path(path: pathlib.Path) -> str:
    """`nearest` for the first part of a path that is not there."""
    while not path.parent.exists():
        path = path.parent
    try:
        return nearest(path.name, [each.name for each in path.parent.iterdir() if each.suffix == path.suffix])
    except OSError:
        return ""
