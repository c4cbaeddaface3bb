"""Values against types with bounds, as `Annotated[int, Meta(ge=1)]`: of one, of a config, of an object."""

import dataclasses
import functools
import os
import re
import typing
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from internvl_jax.errors import InputError
from internvl_jax.validation.documents import parse_json
from internvl_jax.validation.words import UNIONS, describe, first_line, in_words, nearest, shown

T = TypeVar("T")

# Bounds that several configs share; NaN and infinity are within none of them.
Count = Annotated[int, Meta(ge=1, le=2**40)]
CountOrZero = Annotated[int, Meta(ge=0, le=2**40)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=10**9)]
FilePath = Annotated[str, Meta(pattern=r"\A[^\x00]*\Z", description="without NUL characters")]
NotNegative = Annotated[float, Meta(ge=0, le=10**9)]

_INFINITY_BITS = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}


def convert(value: Any, kind: Any, where: str) -> Any:
    """A JSON value as another type, of those that msgspec knows: objects become `msgspec.Struct`s.

    Raises:
      InputError: naming where it stands, the value, and what it must be.
    """
    if isinstance(value, np.generic):  # as arrays give them
        value = value.item()
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        place = place.rstrip("`")
        if reason.startswith("Object missing required field"):
            raise InputError(f"{where}{place} lacks the field {reason.split('`')[1]!r}; add it.") from None
        if place or _is_struct(kind):
            expected = in_words(reason.partition(", got")[0].removeprefix("Expected "))
            raise InputError(f"{where}{place} is {shown(_at(value, place))}; it must be {expected}.") from None
        raise InputError(f"{where} is {shown(value)}; it must be {describe(kind)}.") from None
    except UnicodeEncodeError:
        raise InputError(f"{where} is {shown(value)}, with half of a surrogate pair; write it in UTF-8.") from None


def check_value(value: Any, kind: Any, where: str) -> None:
    """Holds a value against a type, strictly: a whole number may stand for a number, nothing else for anything else.

    Args:
      kind: bool, int, float, str, Literal, None, lists and unions of them, with bounds.

    Raises:
      InputError: naming where it stands, the value, and what it must be.
    """
    convert(value, kind, where)


def read_text(text: str, kind: Any, where: str) -> Any:
    """A value that was written as a text, as in a flag: true, 3, 1e-5, bfloat16; lists as JSON.

    Args:
      kind: as for `check_value`, or a tuple of dataclasses.

    Raises:
      InputError: naming where it stands, the text, and what it must be.
    """
    try:
        value = parse_json(text.encode(), where, unique=True) if typing.get_origin(kind) in (list, tuple) else text
        _refuse_unknown(value, kind, where)
        # A flag's text stands for numbers too; in JSON every value has its own type.
        return msgspec.convert(value, kind, strict=value is not text)
    except UnicodeEncodeError:
        raise InputError(f"{where} is {shown(text)}, with half of a surrogate pair; write it in UTF-8.") from None
    except msgspec.ValidationError as error:
        reason = f" ({first_line(error)})" if value is not text else ""
        raise InputError(f"{where} is {shown(text)}; it must be {describe(kind)}{reason}.") from None


def _refuse_unknown(value: Any, kind: Any, where: str) -> None:
    """msgspec passes over fields that a dataclass does not have: a typo would leave a setting at its default."""
    classes, parts = _classes(kind), value if isinstance(value, list) else [value]
    for number, part in enumerate(parts if classes else []):
        names = {field.name for cls in classes for field in dataclasses.fields(cls)}
        if isinstance(part, dict) and (unknown := sorted(part.keys() - names)):
            hint = nearest(unknown[0], names)
            raise InputError(f"{where}[{number}] has an unknown field {unknown[0]!r}{hint}; remove or correct it.")


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
        elif typing.get_origin(kind) is tuple and isinstance(value, tuple | list):
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
                "use a checkpoint of a supported family."
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


def not_null(kind: Any) -> Any:
    """A type without null, where it may be null."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) in UNIONS else kind


def _at(value: Any, place: str) -> Any:
    """The value at a place as msgspec writes it, '.a[0].b[...]'; the part before "[...]", which says of no key."""
    for name, number in re.findall(r"\.(\w+)|\[(\d+)\]", place.partition("[...]")[0]):
        value = value[name] if name else value[int(number)]
    return value


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _plain(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


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


def all_finite(array: np.ndarray) -> bool:
    """Three times as fast as np.isfinite on bfloat16: a float is finite where its bits without sign are below those of
    infinity. Integers are."""
    if array.dtype.kind in "iu":
        return True
    bits = array.view(f"u{array.dtype.itemsize}")
    infinity = bits.dtype.type(_INFINITY_BITS[array.dtype.name])
    sign_off = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    return bool(np.max(bits & sign_off, initial=0) < infinity)
