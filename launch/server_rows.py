"""Flags of how many answers a server writes at a time, and how long they may be."""

import re

from absl import flags

from internvl_jax import serving
from internvl_jax.errors import InputError
from internvl_jax.inference import Ladders
from launch import server_flags

_SHORTEST, _USUAL = 64, 4096
_ROWS = flags.DEFINE_string("rows", "8", "answers that are written at a time; or some of each length, 8x4096,4x16384")
_CONTEXT = flags.DEFINE_integer(
    "context", None, f"tokens of a conversation with its answer, at most; default: {_USUAL}", _SHORTEST
)
_RESERVE = flags.DEFINE_integer(
    "reserve", None, "tokens of an answer that a row must have room for, which moves on if it has more; default: all", 1
)
_CHUNK = flags.DEFINE_integer("chunk", None, "tokens of prompts that are read between two tokens of answers", 32)
_FEATURES = flags.DEFINE_integer(
    "feature_bytes", None, "memory of features of pictures that are kept; default: of 1,024 tiles, 1 GiB at most", 1
)
_PAGE = flags.DEFINE_integer("page", None, "tokens of a page of the cache (TPU); default: rows of their own", 1)


def ladders() -> Ladders:
    """The sizes of the server's engine; InputError for rows that can't be."""
    tiles = server_flags.limits().tiles
    return serving.ladders(_classes(), _CHUNK.value, _PAGE.value, _FEATURES.value, tiles, _RESERVE.value)


def _classes() -> tuple[tuple[int, int], ...]:
    given = _ROWS.value
    if re.fullmatch("[1-9][0-9]{0,5}", given):
        return ((int(given), _CONTEXT.value or _USUAL),)
    found = [re.fullmatch("([1-9][0-9]{0,5})x([1-9][0-9]{0,7})", each) for each in given.split(",")]
    classes = tuple((int(each[1]), int(each[2])) for each in found if each)
    if len(classes) < len(found) or min(length for _, length in classes) < _SHORTEST:
        raise InputError(
            f"--rows={given}: give how many, as --rows=8, or how many of each length, as --rows=8x4096,4x16384 (a row "
            f"has {_SHORTEST} tokens or more)"
        )
    if _CONTEXT.value is not None:
        raise InputError(f"--rows={given} says how long rows are; leave out --context")
    return classes
