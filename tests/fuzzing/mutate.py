"""Inputs that are nearly right: bytes and JSON values with faults in a few places."""

import copy
import json
import random
from typing import Any

# What stands where something else should.
NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    -(10**9),
    0.0,
    -0.5,
    0.3,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "12",
    "a\0b",
    "../..",
    "/etc/hostname",
    "\ud83d",
    "<image>",
    "<IMG_CONTEXT>" * 3,
    "x" * 100_000,
    [],
    {},
    [[]],
    [None],
    ["a", 1],
    {"a": None},
    {"content": 3},
)
_TOKENS = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b"\n",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"1e999",
    b"NaN",
    b"\\ud83d",
    b",",
)


def value(rng: random.Random, whole: Any, faults: int = 1) -> Any:
    """A copy of a JSON value in which some values are others, missing, doubled or deep."""
    whole = json.loads(json.dumps(whole))
    for _ in range(rng.randint(1, faults)):
        whole = _change(rng, whole)
    return whole


def _change(rng: random.Random, part: Any) -> Any:
    if not isinstance(part, dict | list) or not part or rng.random() < 0.1:
        return _other(rng, part)
    keys = list(part) if isinstance(part, dict) else range(len(part))
    key = rng.choice(list(keys))
    fate = rng.random()
    if fate < 0.1:
        del part[key]
    elif fate < 0.15 and isinstance(part, dict):
        part[str(rng.choice(NASTY))[:20]] = part[key]
    elif fate < 0.15:
        part += copy.deepcopy(part)
    else:
        part[key] = _change(rng, part[key])
    return part


def _other(rng: random.Random, part: Any) -> Any:
    fate = rng.random()
    if fate < 0.1 and isinstance(part, int | float):
        return -part
    if fate < 0.2 and isinstance(part, int | float):
        return part * rng.choice((0, 10, 10**6, 0.5))
    if fate < 0.3:
        return [part]
    if fate < 0.4:
        return str(part)
    if fate < 0.43:
        deep: Any = part
        for _ in range(rng.choice((10, 70, 300))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    return copy.deepcopy(rng.choice(NASTY))


def document(rng: random.Random, whole: Any) -> bytes:
    """A JSON document with faults in its values, in its bytes, or nested too deep."""
    fate = rng.random()
    if fate < 0.03:
        return rng.choice((b"[", b'{"a":')) * rng.choice((500, 100_000))
    text = json.dumps(value(rng, whole, 3) if fate < 0.8 else whole, ensure_ascii=rng.random() < 0.5)
    encoded = text.encode("utf-8", "surrogatepass")
    return damaged(rng, encoded) if fate > 0.7 else encoded


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes of which some are flipped, cut out, doubled, zero or others."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        size = len(content)
        start = rng.randrange(size + 1)
        end = min(size, start + rng.choice((1, 4, 64)))
        fate = rng.randrange(7)
        if fate == 0 and start < size:
            content[start] ^= 1 << rng.randrange(8)
        elif fate == 1:
            del content[start:]
        elif fate == 2:
            del content[start:end]
        elif fate == 3:
            content[start:start] = content[start:end]
        elif fate == 4:
            content[start:end] = bytes(end - start)
        elif fate == 5:
            content[start:end] = rng.randbytes(end - start)
        else:
            content[start:start] = rng.choice(_TOKENS)
    return bytes(content)
