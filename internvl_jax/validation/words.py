"""What errors say of values, types, names, and of what libraries say."""

import difflib
import re
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from msgspec import Meta

UNIONS = (typing.Union, types.UnionType)
_SHOWN = 80  # characters of a wrong value that an error repeats


def shown(value: Any) -> str:
    """A value in an error: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def nearest(name: str, names: Iterable[str]) -> str:
    """For errors about unknown names: ' (did you mean ...?)', or nothing where none is like it."""
    found = difflib.get_close_matches(name, list(names), 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def first_line(error: BaseException) -> str:
    """What a library says, in one line: what follows is its trace."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.removeprefix("JSON is malformed: ").partition(" - at `$")[0].rstrip(".")[:300]


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"} | {
    dict: "an object",
    list: "a list",
}
_NAMES = dict(zip(("bool", "int", "float", "str", "null", "object", "array"), _WORDS.values(), strict=True))


def in_words(expected: str) -> str:
    """What msgspec expects, '`int | null` >= 0', without its names of types."""
    return re.sub(
        "`([^`]*)`",
        lambda match: " or ".join(_NAMES.get(name, name) for name in match[1].split(" | ")),
        expected,
    )


def describe(kind: Any) -> str:
    """What a value of a type must be, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        bounds = [meta for meta in arguments[1:] if isinstance(meta, Meta)]
        return " ".join([describe(arguments[0]), *map(_bounds, bounds)])
    if origin is Literal:
        return " or ".join(map(repr, arguments)) if len(arguments) < 3 else f"one of {', '.join(map(repr, arguments))}"
    if origin in UNIONS:
        return " or ".join(map(describe, arguments))
    if origin is tuple and Ellipsis not in arguments:
        return f"a pair of {' and '.join(map(describe, arguments))}"
    if origin in (list, tuple):
        return f"a list of {describe(arguments[0])}"
    return _WORDS.get(kind) or f"the fields of {kind.__name__}"


def _bounds(meta: Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        bounds = f"from {meta.ge:,} to {meta.le:,}"
    else:
        words = {"from": meta.ge, "above": meta.gt, "at most": meta.le, "below": meta.lt}
        bounds = " and ".join(f"{word} {bound:,}" for word, bound in words.items() if bound is not None)
    return " ".join(filter(None, [bounds, "that isn't empty" * bool(meta.min_length), meta.description]))


def differences(ours: Any, theirs: Any, path: str = "", sides: tuple[str, str] = ("here", "there")) -> list[str]:
    """Fields in which two nested dicts differ, as 'optim.learning_rate: 1e-4 here, 2e-4 there'."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted(ours.keys() | theirs.keys())
        return [
            line
            for name in names
            for line in differences(ours.get(name), theirs.get(name), f"{path}.{name}" if path else name, sides)
        ]
    # Where one side has a whole section and the other nothing, that is the news; of two values every character counts.
    write = shown if isinstance(ours, dict) or isinstance(theirs, dict) else repr
    return [] if ours == theirs else [f"{path}: {write(ours)} {sides[0]}, {write(theirs)} {sides[1]}"]
