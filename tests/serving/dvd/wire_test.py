"""What is written is read as it was meant; what is not written so is refused, and costs nothing."""

import contextlib
import math
import random
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from internvl_jax.serving.dvd import wire
from internvl_jax.serving.dvd.wire_messages import (
    DTYPES,
    ENTRY_BYTES,
    HEADER_BYTES,
    MOST_ENTRIES,
    Bye,
    Cancel,
    Challenge,
    EncodeTiles,
    Entry,
    Hello,
    KeptFeatures,
    Need,
    Ping,
    Pong,
    Proof,
    TilePixels,
    TileShape,
    Welcome,
    WireError,
    WireFault,
)
from tests.fuzzing import mutate

SHAPE = TileShape(side=2, tokens=4, compressed=1, width=3)
NAME, OTHER = bytes(range(16)), bytes(range(16, 32))
NUMBERS = np.arange(12, dtype=np.float32).reshape(4, 3)
MESSAGES = (
    Hello(b"a" * 32),
    Challenge(b"b" * 32),
    Proof(b"c" * 32, b"d" * 64),
    Welcome(b"e" * 32, b"f" * 64, 256, 4.0),
    EncodeTiles(7, (Entry(NAME), Entry(OTHER, 3, 0.25), Entry(NAME)), 0.5, math.nan),
    Need(7, (NAME, OTHER)),
    TilePixels(7, NAME, bytes(range(12))),
    KeptFeatures(7, NAME, 0.75, 4, 3, 1, NUMBERS.astype(ml_dtypes.bfloat16)),
    KeptFeatures(7, NAME, math.nan, 1, 3, 2, NUMBERS[:1]),
    KeptFeatures(7, NAME, 0.75, 1, 3, 0, None),
    WireFault(0, 3, "another secret"),
    WireFault(7, 7, ""),
    Cancel(2**64 - 1),
    Ping(),
    Pong(),
    Bye(),
)


def as_bytes(parts):
    return [bytes(part) for part in parts]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_as_it_went(message):
    sent = wire.encode(message)
    come = wire.decode(sent, SHAPE)
    assert type(come) is type(message)
    assert as_bytes(wire.encode(come)) == as_bytes(sent)
    for ours, theirs in zip(message, come, strict=True):
        np.testing.assert_array_equal(ours, bytes(theirs) if type(theirs) is memoryview else theirs)


def test_bytes_are_those_of_the_table():
    """Written out once by hand from the module's own text: who reads it can write the other side."""
    nan = struct.pack("<f", math.nan)
    header = b"IVDV" + b"\1\0" + b"\5\0" + b"\7" + bytes(7) + b"\2\0\0\0" + bytes(12)
    entries = NAME + b"\0\0" + nan + OTHER + b"\3\0" + struct.pack("<f", 0.25)
    ours = wire.encode(EncodeTiles(7, (Entry(NAME), Entry(OTHER, 3, 0.25)), 0.5, math.nan))
    assert as_bytes(ours) == [header + entries, struct.pack("<dd", 0.5, math.nan)]
    header = b"IVDV" + b"\1\0" + b"\x08\0" + b"\7" + bytes(7) + b"\1\0\0\0\1\0\0\0\3\0\0\0" + b"\2\0\0\0"
    ours = wire.encode(KeptFeatures(7, NAME, 0.25, 1, 3, 2, NUMBERS[:1]))
    assert as_bytes(ours) == [header + NAME + b"\1\0" + struct.pack("<f", 0.25), struct.pack("<fff", 0, 1, 2)]
    assert len(header) == HEADER_BYTES and len(NAME) + 6 == ENTRY_BYTES


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_that_is_cut_or_too_long_is_refused(message):
    header, payload = as_bytes(wire.encode(message))
    texts = type(message) is WireFault  # whose payload may have any length
    wrong = [(header[:n], payload) for n in range(len(header))] + [(header + b"\0", payload), (header * 2, payload)]
    wrong += [] if texts else [(header, payload[:n]) for n in range(len(payload))] + [(header, payload + b"\0")]
    wrong += [(header, bytes(2000)), (), (header,), (header, payload, b"")]
    for parts in wrong:
        with pytest.raises(WireError) as error:
            wire.decode(parts, SHAPE)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize(("at", "size"), [(0, 4), (4, 2), (6, 2), (16, 4), (20, 4), (24, 4), (28, 1), (29, 1), (30, 2)])
def test_a_header_with_another_field_is_refused(message, at, size):
    header, payload = as_bytes(wire.encode(message))
    for other in (b"\xff" * size, b"\x0e" * size):
        with pytest.raises(WireError):
            wire.decode((header[:at] + other + header[at + size :], payload), SHAPE)


@pytest.mark.parametrize(
    "message",
    [
        EncodeTiles(0, (Entry(NAME),)),
        EncodeTiles(7, ()),
        EncodeTiles(7, (Entry(NAME, 4),)),
        EncodeTiles(7, (Entry(NAME, 0, 1.5),)),
        EncodeTiles(7, (Entry(NAME, 0, math.inf),)),
        EncodeTiles(7, (Entry(NAME),), -0.1),
        EncodeTiles(7, (Entry(NAME),), 0.5, math.inf),
        EncodeTiles(7, (Entry(NAME),) * (MOST_ENTRIES + 1)),
        Need(7, (NAME, NAME)),
        Need(7, ()),
        Welcome(b"e" * 32, b"f" * 64, 0, 4.0),
        Welcome(b"e" * 32, b"f" * 64, 5, math.nan),
        KeptFeatures(7, NAME, 0.5, 2, 3, 2, NUMBERS[:2]),
        KeptFeatures(7, NAME, 0.5, 4, 2, 2, NUMBERS[:, :2]),
        KeptFeatures(7, NAME, 0.5, 4, 3, 3, NUMBERS),
        KeptFeatures(7, NAME, -1.0, 4, 3, 2, NUMBERS),
        KeptFeatures(7, NAME, 0.5, 4, 3, 2, None),
    ],
    ids=str,
)
def test_values_that_none_can_have_are_refused(message):
    with pytest.raises(WireError):
        wire.decode(wire.encode(message), SHAPE)


def test_another_version_is_named():
    header, payload = as_bytes(wire.encode(Ping()))
    with pytest.raises(WireError, match="speaks version 2 of the wire, this one 1"):
        wire.decode((header[:4] + b"\2\0" + header[6:], payload), SHAPE)


def test_text_of_others_is_fit_for_a_log():
    text = "a\nb\x1b[31m\u202e" + "\N{SNOWMAN}" * 1000
    come = wire.decode(wire.encode(WireFault(0, 1, text)), SHAPE).text
    assert come.isprintable() and come.startswith("a b") and len(come.encode()) <= 1000
    header, _ = wire.encode(Ping())
    header = header[:6] + b"\x09\0" + header[8:]
    assert wire.decode((header, b"\1\0\xff\xfe"), SHAPE).text.isprintable()


def test_mutated_messages_are_refused_or_canonical():
    """What is taken is written again as the same bytes: nothing has two meanings, or none."""
    rng, taken = random.Random(0), 0
    for _ in range(500):
        parts = as_bytes(wire.encode(rng.choice(MESSAGES)))
        which = rng.randrange(2)
        parts[which] = mutate.damaged(rng, parts[which])
        try:
            come = wire.decode(parts, SHAPE)
        except WireError:
            continue
        taken += 1
        again = as_bytes(wire.encode(come))
        if type(come) is not WireFault and all(not math.isnan(number) for number in floats(parts)):
            assert again == parts
    assert 0 < taken < 250


def floats(parts):
    """A mutated NaN may be another one, and text is cleaned: these are not compared."""
    header, payload = parts
    entries = [header[at : at + ENTRY_BYTES] for at in range(HEADER_BYTES, len(header), ENTRY_BYTES)]
    numbers = [struct.unpack_from("<f", entry, 18)[0] for entry in entries]
    return numbers + ([*struct.unpack("<dd", payload)] if len(payload) == 16 else [])


def test_nothing_is_allocated_for_what_a_header_claims():
    header, payload = as_bytes(wire.encode(KeptFeatures(7, NAME, 0.5, 4, 3, 2, NUMBERS)))
    huge = header[:16] + b"\xff" * 12 + header[28:]
    tracemalloc.start()
    for parts in ((huge, payload), (huge + bytes(1000), payload), (header, payload)):
        with contextlib.suppress(WireError):
            wire.decode(parts, SHAPE)
    assert tracemalloc.get_traced_memory()[1] < 20_000
    tracemalloc.stop()


def test_values_are_not_copied():
    for dtype in DTYPES.values():
        values_PD = NUMBERS.astype(dtype)
        message = KeptFeatures(7, NAME, 0.5, 4, 3, 1 if dtype.itemsize == 2 else 2, values_PD)
        parts = wire.encode(message)
        assert np.shares_memory(np.frombuffer(parts[1], np.uint8), values_PD)
        assert np.shares_memory(wire.decode(parts, SHAPE).values_PD, values_PD)
