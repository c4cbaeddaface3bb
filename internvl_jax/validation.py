"""What comes from outside is checked here, once: JSON, the values in it, the fields of configs, archives of arrays.

1. `parse_json`, `read_json` and `read_lines` read UTF-8, with or without a byte order mark; only "\\n" ends a line.
   Halves of surrogate pairs, NaN, numbers beyond float64 and deep nesting are refused.
2. `check_value` holds a value against a type with bounds, as `Annotated[int, Meta(ge=1)]`; `check_fields` does so for
   every field of a dataclass, and `build` makes a dataclass of a JSON object.
3. `read_arrays` reads the arrays of an npz archive.

Every error is an `InputError` that says where the value stands and what it must be.
"""

import dataclasses
import difflib
import functools
import json
import os
import pathlib
import re
import types
import typing
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from internvl_jax.errors import InputError

MAX_DEPTH = 64  # of nested lists and objects
_ADVICE = "check the path"
_UNIONS = (typing.Union, types.UnionType)
_SHOWN = 80  # characters of a wrong value that an error repeats
# What numpy raises for archives that are damaged in one way or another.
_DAMAGE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, MemoryError, RuntimeError)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

T = TypeVar("T")

# Bounds that several configs share; NaN and infinity are within none of them.
Count = Annotated[int, Meta(ge=1, le=2**40)]
CountOrZero = Annotated[int, Meta(ge=0, le=2**40)]
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=10**9)]
FilePath = Annotated[str, Meta(pattern=r"\A[^\x00]*\Z", description="without NUL characters")]
NotNegative = Annotated[float, Meta(ge=0, le=10**9)]


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
        raise InputError(f"{where} is not valid JSON: {_half_pair(text) or _reason(error)}.") from None
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


def convert(value: Any, kind: Any, where: str) -> Any:
    """A JSON value as another type, of those that msgspec knows: objects become `msgspec.Struct`s.

    Raises:
      InputError: naming where it stands, the value, and what it must be.
    """
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        place = place.rstrip("`")
        if reason.startswith("Object missing required field"):
            raise InputError(f"{where}{place} lacks the field {reason.split('`')[1]!r}; add it.") from None
        if place or _is_struct(kind):
            expected = reason.partition(", got")[0]
            found = shown(_at(value, place))
            raise InputError(f"{where}{place} is {found}; {expected[0].lower()}{expected[1:]}.") from None
        raise InputError(f"{where} is {shown(value)}; it must be {describe(kind)}.") from None


def check_value(value: Any, kind: Any, where: str) -> None:
    """Holds a value against a type, strictly: a whole number may stand for a number, nothing else for anything else.

    Args:
      kind: bool, int, float, str, Literal, None, lists and unions of them, with bounds.

    Raises:
      InputError: naming where it stands, the value, and what it must be.
    """
    convert(value, kind, where)


def nearest(name: str, names: Iterable[str]) -> str:
    """For errors about unknown names: ' (did you mean ...?)', or nothing where none is like it."""
    found = difflib.get_close_matches(name, list(names), 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def check_fields(config: Any, where: str) -> None:
    """Holds every field of a dataclass against its annotation, and those of dataclasses within.

    Raises:
      InputError: naming the first field that is wrong, as `where.field`.
    """
    cls: Any = type(config)
    for name, kind, classes in _plan(cls):
        value, place = getattr(config, name), f"{where}.{name}" if where else name
        if not classes:
            check_value(value, kind, place)
        elif typing.get_origin(kind) is tuple and isinstance(value, tuple):
            for number, part in enumerate(value):
                _check_config(part, typing.get_args(kind)[0], classes, f"{place}[{number}]")
        elif value is not None or type(None) not in typing.get_args(kind):
            _check_config(value, kind, classes, place)


def bounds_of(cls: Any, field: str) -> Any:
    """The annotated type of a dataclass's field, for `check_value`."""
    return _hints(cls)[field]


@dataclasses.dataclass(frozen=True)
class Fields:
    """An object of a JSON file of which some fields are read; errors name the file and the field.

    Attributes:
      file: the path of the file.
      name: where the object stands in it; "" for the file's own.
    """

    file: str | os.PathLike
    name: str
    values: dict[str, Any]

    def where(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def get(self, key: str, kind: Any) -> Any:
        """The value of a field of this type (see `check_value`); whole numbers become floats where these are wanted.

        Raises:
          InputError: it is missing, or of another type or out of bounds.
        """
        if key not in self.values:
            raise InputError(f"{self.file} lacks {self.where(key)}; add it, or take the file that it came from again.")
        value = self.values[key]
        check_value(value, kind, f"{self.file}: {self.where(key)}")
        return float(value) if isinstance(value, int) and _plain(kind) is float else value

    def optional(self, key: str, kind: Any, default: Any = None) -> Any:
        """As `get`; the default where the field is missing or null."""
        return default if self.values.get(key) is None else self.get(key, kind)

    def part(self, key: str) -> "Fields":
        """The object of a field; InputError where there is none."""
        return Fields(self.file, self.where(key), self.get(key, dict))

    def expect(self, key: str, computed: Any) -> None:
        """Raises InputError for another value than the one that is computed here. Absent fields pass: formats leave out
        what has its default.
        """
        if self.values.get(key, computed) != computed:
            raise InputError(
                f"{self.file}: {self.where(key)} is {shown(self.values[key])}, but only {computed!r} is supported; "
                "use a checkpoint of the InternVL3.5 family."
            )


def build(cls: type[T], values: Any, where: str) -> T:
    """A dataclass of plain fields from a JSON object that has all of them and no others.

    Raises:
      InputError: something else than an object, unknown or missing fields, or a field of the wrong type or out of
        bounds.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where} is {shown(values)}, not an object; write the fields of {cls.__name__}.")
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - names):
        raise InputError(f"{where} has unknown fields {unknown}{nearest(unknown[0], names)}; remove them.")
    if missing := sorted(names - values.keys()):
        raise InputError(f"{where} lacks the fields {missing}; add them.")
    return cls(**values)


def read_arrays(path: str | os.PathLike, kinds: Mapping[str, str], optional: Mapping[str, str] = {}) -> dict[str, Any]:
    """Arrays of an npz archive.

    Args:
      kinds: for the name of every array that must be there the letter of `numpy.dtype.kind` ('i', 'f', 'b', 'U') and
        its number of axes, as 'i2'.
      optional: the same for arrays that may be there.

    Raises:
      InputError: the archive can't be read, lacks an array, or has one of another kind.
    """
    wanted = {**kinds, **optional}
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = {name: file[name] for name in wanted if name in kinds or name in file}
    except _DAMAGE as error:
        raise InputError(f"{path} can't be read: {_reason(error)}.") from error
    for name, array in found.items():
        if (kind := f"{array.dtype.kind}{array.ndim}") != wanted[name]:
            raise InputError(f"{path} has {name} of kind {kind} instead of {wanted[name]}.")
    return found


def shown(value: Any) -> str:
    """A value in an error: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def not_null(kind: Any) -> Any:
    """A type without null, where it may be null."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) in _UNIONS else kind


def _nearest_path(path: pathlib.Path) -> str:
    """`nearest` for the first part of a path that is not there."""
    while not path.parent.exists():
        path = path.parent
    try:
        return nearest(path.name, [each.name for each in path.parent.iterdir() if each.suffix == path.suffix])
    except OSError:
        return ""


def _at(value: Any, place: str) -> Any:
    """The value at a place as msgspec writes it, '.a[0].b[...]'; the part before "[...]", which says of no key."""
    for name, number in re.findall(r"\.(\w+)|\[(\d+)\]", place.partition("[...]")[0]):
        value = value[name] if name else value[int(number)]
    return value


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _plain(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def describe(kind: Any) -> str:
    """What a value of a type must be, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        bounds = [meta for meta in arguments[1:] if isinstance(meta, Meta)]
        return " ".join([describe(arguments[0]), *map(_bounds, bounds)])
    if origin is Literal:
        return " or ".join(map(repr, arguments)) if len(arguments) < 3 else f"one of {', '.join(map(repr, arguments))}"
    if origin in _UNIONS:
        return " or ".join(map(describe, arguments))
    if origin in (list, tuple):
        return f"a list of {describe(arguments[0])}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    words |= {dict: "an object", list: "a list"}
    return words.get(kind) or f"the fields of {kind.__name__}"


def _bounds(meta: Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        bounds = f"from {meta.ge:,} to {meta.le:,}"
    else:
        words = {"from": meta.ge, "above": meta.gt, "at most": meta.le, "below": meta.lt}
        bounds = " and ".join(f"{word} {bound:,}" for word, bound in words.items() if bound is not None)
    return " ".join(filter(None, [bounds, "that isn't empty" * bool(meta.min_length), meta.description]))


def _check_config(config: Any, kind: Any, classes: tuple[type, ...], where: str) -> None:
    if typing.get_origin(kind) is tuple or not isinstance(config, classes):
        raise InputError(f"{where} is {shown(config)}; it must be {describe(kind)}.")
    check_fields(config, where)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


@functools.cache
def _plan(cls: type) -> list[tuple[str, Any, tuple[type, ...]]]:
    """Name, type and dataclasses within the type of every field."""
    return [(name, kind, _classes(kind)) for name, kind in _hints(cls).items()]


def _classes(kind: Any) -> tuple[type, ...]:
    """The dataclasses that a type consists of or holds."""
    if dataclasses.is_dataclass(kind):
        return (kind,)  # type: ignore[return-value]
    return tuple(cls for part in typing.get_args(kind) for cls in _classes(part))


def _deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            each
            for part in level
            if isinstance(part, dict | list)
            for each in (part.values() if isinstance(part, dict) else part)
        ]
        if not level:
            return False
    return True


def _half_pair(text: bytes) -> str | None:
    """What is wrong with JSON in which a character beyond 16 bits was cut in two, as some tools do."""
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


def _reason(error: BaseException) -> str:
    """What a library says, in one line."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.removeprefix("JSON is malformed: ").partition(" - at `$")[0].rstrip(".")[:300]


def _kind(value: Any) -> str:
    words = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return words.get(type(value), "a number")
