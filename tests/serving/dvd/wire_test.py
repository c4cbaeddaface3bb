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


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_as_it_went(message):
    sent = wire.encode(message)
    come = wire.decode(sent, SHAPE)
    assert type(come) is type(message)
    assert wire.encode(come) == sent
    for ours, theirs in zip(message, come, strict=True):
        np.testing.assert_array_equal(ours, bytes(theirs) if type(theirs) is memoryview else theirs)


def test_bytes_are_those_of_the_table():
    """Written out once by hand from the module's own text: who reads it can write the other side."""
    nan = struct.pack("<f", math.nan)
    header = b"IVDV" + b"\1\0" + b"\5\0" + b"\7" + bytes(7) + b"\2\0\0\0" + bytes(12)
    entries = NAME + b"\0\0\0\0" + nan + OTHER + b"\3\0\0\0" + struct.pack("<f", 0.25)
    ours = wire.encode(EncodeTiles(7, (Entry(NAME), Entry(OTHER, 3, 0.25)), 0.5, math.nan))
    assert ours == header + entries + struct.pack("<dd", 0.5, math.nan)
    header = b"IVDV" + b"\1\0" + b"\x08\0" + b"\7" + bytes(7) + b"\1\0\0\0\1\0\0\0\3\0\0\0" + b"\2\0\0\0"
    ours = wire.encode(KeptFeatures(7, NAME, 0.25, 1, 3, 2, NUMBERS[:1]))
    assert ours == header + NAME + b"\1\0\0\0" + struct.pack("<ffff", 0.25, 0, 1, 2)
    assert len(header) == HEADER_BYTES and len(NAME) + 8 == ENTRY_BYTES


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_that_is_cut_or_too_long_is_refused(message):
    whole = wire.encode(message)
    texts = type(message) is WireFault  # which may have any length
    wrong = [whole[:n] for n in range(HEADER_BYTES + 2 if texts else len(whole))]
    wrong += [whole + bytes(2000)] + [whole + b"\0", whole * 2] * (not texts)
    for frame in wrong:
        with pytest.raises(WireError) as error:
            wire.decode(frame, SHAPE)
        assert "\n" not in str(error.value)


def test_the_longest_message_is_known():
    for shape in (SHAPE, TileShape(448, 256, 64, 4096), TileShape(448, 4, 0, 8)):
        most = EncodeTiles(7, (Entry(NAME),) * MOST_ENTRIES)
        pixels = TilePixels(7, NAME, bytes(shape.pixel_bytes))
        values = KeptFeatures(7, NAME, 1.0, shape.tokens, shape.width, 2, np.ones((shape.tokens, shape.width), "f4"))
        lengths = [len(wire.encode(message)) for message in (*MESSAGES, most, pixels, values)]
        assert max(lengths) == shape.longest
        wire.decode(wire.encode(most), shape)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize(("at", "size"), [(0, 4), (4, 2), (6, 2), (16, 4), (20, 4), (24, 4), (28, 1), (29, 1), (30, 2)])
def test_a_header_with_another_field_is_refused(message, at, size):
    whole = wire.encode(message)
    for other in (b"\xff" * size, b"\x0e" * size):
        with pytest.raises(WireError):
            wire.decode(whole[:at] + other + whole[at + size :], SHAPE)


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
    ping = wire.encode(Ping())
    with pytest.raises(WireError, match="speaks version 2 of the wire, this one 1"):
        wire.decode(ping[:4] + b"\2\0" + ping[6:], SHAPE)


def test_text_of_others_is_fit_for_a_log():
    text = "a\nb\x1b[31m\u202e" + "\N{SNOWMAN}" * 1000
    come = wire.decode(wire.encode(WireFault(0, 1, text)), SHAPE).text
    assert come.isprintable() and come.startswith("a b") and len(come.encode()) <= 1000
    ping = wire.encode(Ping())
    assert wire.decode(ping[:6] + b"\x09\0" + ping[8:] + b"\1\0\xff\xfe", SHAPE).text.isprintable()


def test_mutated_messages_are_refused_or_canonical():
    """What is taken is written again as the same bytes: nothing has two meanings, or none."""
    rng, taken = random.Random(0), 0
    for _ in range(500):
        frame = mutate.damaged(rng, wire.encode(rng.choice(MESSAGES)))
        try:
            come = wire.decode(frame, SHAPE)
        except WireError:
            continue
        taken += 1
        if type(come) is not WireFault:  # whose text is cleaned
            again = wire.encode(come)
            changed = {at for at, (ours, theirs) in enumerate(zip(frame, again, strict=True)) if ours != theirs}
            assert changed <= nans(again)
    assert 50 < taken < 250


def nans(frame):
    """Where numbers stand that are NaN, of which there are many."""
    count, kind = struct.unpack_from("<I", frame, 16)[0], frame[6]
    end = HEADER_BYTES + count * ENTRY_BYTES
    numbers = [("<f", at - 4) for at in range(HEADER_BYTES + ENTRY_BYTES, end + 1, ENTRY_BYTES)]
    numbers += [("<d", end), ("<d", end + 8)] * (kind == 5)
    found = [(at, struct.calcsize(form)) for form, at in numbers if math.isnan(struct.unpack_from(form, frame, at)[0])]
    return {at + byte for at, size in found for byte in range(size)}


def test_nothing_is_allocated_for_what_a_header_claims():
    right = wire.encode(KeptFeatures(7, NAME, 0.5, 4, 3, 2, NUMBERS))
    huge = right[:16] + b"\xff" * 12 + right[28:]
    tracemalloc.start()
    for frame in (huge, huge + bytes(1000), right):
        with contextlib.suppress(WireError):
            wire.decode(frame, SHAPE)
    assert tracemalloc.get_traced_memory()[1] < 20_000
    tracemalloc.stop()


def test_values_and_pixels_that_come_are_not_copied():
    for dtype in DTYPES.values():
        message = KeptFeatures(7, NAME, 0.5, 4, 3, 1 if dtype.itemsize == 2 else 2, NUMBERS.astype(dtype))
        frame = wire.encode(message)
        come = wire.decode(frame, SHAPE).values_PD
        assert np.shares_memory(come, np.frombuffer(frame, np.uint8)) and come.flags.aligned
    frame = wire.encode(TilePixels(7, NAME, bytes(12)))
    assert np.shares_memory(np.frombuffer(wire.decode(frame, SHAPE).pixels, np.uint8), np.frombuffer(frame, np.uint8))
