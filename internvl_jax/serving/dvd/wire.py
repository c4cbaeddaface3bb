"""The wire between vision servers and language servers, version 1: messages, their bytes, and what is refused.

Transport is ZMTP 3 over TCP (or ipc): a vision server binds a ROUTER, a language server connects a DEALER to each. With
a secret the mechanism is PLAIN, user "internvl", password `greeting.gate(secret)`: nobody else can put a message into
the server's memory. Without one it is NULL. Nothing is encrypted: pictures and features want a private network.

A message is one ZeroMQ frame: header, entries, payload. All numbers are little-endian, nothing is padded.

    offset  size  header
    0       4     magic, "IVDV"
    4       2     u16 version, 1
    6       2     u16 kind
    8       8     u64 request: a number that the language server chose, unique among its open requests; never 0
    16      4     u32 entries, n, at most 4096
    20      4     u32 tokens of a tile
    24      4     u32 width: numbers in a token
    28      1     u8 dtype: 1 bfloat16, 2 float32
    29      1     u8 flags
    30      2     u16 spare, 0
    32      24 n  entries: 16 bytes name, u32 mark, float32 probability (NaN: not known)
    32+24n        payload

A name is blake2b (digest_size=16) of a tile's bytes, which are uint8 RGB `[side, side, 3]`. Fields that a kind does not
name below are 0, of entries the mark is 0 and the probability NaN. A message of another length than its fields say is
refused, and its sender with it. Magic, version, kind, request and all of ERROR stay the same in every version.

    kind  name       from      fields               payload
    1     HELLO      language                       32 bytes nonce, never used before
    2     CHALLENGE  vision                         32 bytes nonce, never used before
    3     PROOF      language                       32 bytes `greeting.client_proof`, 64 bytes model
    4     WELCOME    vision                         32 bytes `greeting.server_proof`, 64 bytes weights, u32 credits,
                                                    float32 seconds of silence after which the server forgets a client
    5     ENCODE     language  request, entries     float64 relative, float64 absolute threshold; NaN: the model's
    6     NEED       vision    request, entries
    7     TILE       language  request, 1 entry     the tile's pixels
    8     FEATURES   vision    request, 1 entry,    values `[tokens, width]`, row by row; where the client has them, no
                               tokens, width,       payload, flags 1 and dtype 0
                               dtype, flags
    9     ERROR      either    request or 0         u16 code (`Code`), then at most 1000 bytes of utf-8: what is wrong.
                                                    Request 0: the connection is over
    10    CANCEL     language  request
    11    PING       language
    12    PONG       vision
    13    BYE        either                         the sender is about to leave

Order of things:

1. HELLO, CHALLENGE, PROOF, WELCOME (or ERROR). A nonce counts once, for its connection. Model and weights are
   fingerprints, filled up with zero bytes; the model's must be equal on both sides, the weights' on all vision
   servers of a language server.
2. ENCODE lists the tiles of a request in their order, as often as they stand there. Of an entry, mark bit 0 says that
   the client has the tile's features at full resolution, bit 1 that it has the compressed ones; a probability that it
   knows counts instead of the server's. Without a router only tiles that the client lacks need be listed. A request
   takes a credit for every distinct name. A client that asks for more than its credits is refused.
3. NEED lists distinct names whose pixels the server wants for a request, each at most once a request; the client
   answers with a TILE for each. A TILE for a request that is no longer open, or that has come meanwhile, is dropped.
4. With a router the server decides by the rule of `inference.Thresholds` over all entries, as soon as it has all
   their probabilities. Then (without a router from the start) it sends for every distinct name one FEATURES, in any
   order: the entry's mark is the number of tokens that is kept, its probability the router's. Each gives a credit
   back, at the server when it is sent, at the client when it comes. After the last one the request is over.
5. CANCEL or ERROR end a request and give back what it has left. What is still under way for it is dropped.
6. A client sends PING once in its heartbeat, whatever else it sends; the server answers with PONG at once. Each side
   gives up the other after a time of silence, or with its connection, and forgets all that was open.
"""

import dataclasses
import math
import struct
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from internvl_jax.serving.dvd.wire_messages import (
    COMPRESSED,
    DTYPES,
    FULL,
    MOST_ENTRIES,
    MOST_TEXT,
    NONCE,
    Buffer,
    Bye,
    Cancel,
    Challenge,
    Code,
    EncodeTiles,
    Entry,
    Hello,
    KeptFeatures,
    Kind,
    Need,
    Ping,
    Pong,
    Proof,
    TilePixels,
    TileShape,
    Welcome,
    WireError,
    WireFault,
    WireMessage,
)

MAGIC, VERSION = b"IVDV", 1
_WITHOUT = 1  # the bit of FEATURES' flags
_HEADER, _ENTRY = struct.Struct("<4sHHQIIIBBH"), struct.Struct("<16sIf")
_PROOF, _WELCOME, _THRESHOLDS, _CODE = (struct.Struct(f"<{form}") for form in ("32s64s", "32s64sIf", "dd", "H"))


def encode(message: WireMessage) -> bytes:
    """The bytes of a message. One frame and not two, which would save a copy of the payload: where a socket is closed
    when it has sent half of a message of several frames, libzmq 4.3.5 aborts the process.
    """
    match message:
        case Hello(nonce):
            return _frame(Kind.HELLO, payload=nonce)
        case Challenge(nonce):
            return _frame(Kind.CHALLENGE, payload=nonce)
        case Proof(digest, model):
            return _frame(Kind.PROOF, payload=_PROOF.pack(digest, model))
        case Welcome(digest, weights, credits, timeout):
            return _frame(Kind.WELCOME, payload=_WELCOME.pack(digest, weights, credits, timeout))
        case EncodeTiles(request, entries, relative, absolute):
            return _frame(Kind.ENCODE, request, entries, _THRESHOLDS.pack(relative, absolute))
        case Need(request, names):
            return _frame(Kind.NEED, request, [Entry(name) for name in names])
        case TilePixels(request, name, pixels):
            return _frame(Kind.TILE, request, [Entry(name)], pixels)
        case KeptFeatures(request, name, probability, tokens, width, dtype, values_PD):
            sizes = {"tokens": tokens, "width": width, "dtype": dtype, "flags": _WITHOUT * (values_PD is None)}
            payload = b"" if values_PD is None else np.ascontiguousarray(values_PD).view(np.uint8).data
            return _frame(Kind.FEATURES, request, [Entry(name, tokens, probability)], payload, **sizes)
        case WireFault(request, code, text):
            return _frame(Kind.ERROR, request, payload=_CODE.pack(code) + _cut(text))
        case Cancel(request):
            return _frame(Kind.CANCEL, request)
        case Ping():
            return _frame(Kind.PING)
        case Pong():
            return _frame(Kind.PONG)
        case Bye():
            return _frame(Kind.BYE)


def decode(frame: Buffer, shape: TileShape) -> WireMessage:
    """The message of a frame. What it has of pixels and values lies in the frame itself.

    Raises:
      WireError: it is no message of this version and shape.
    """
    header, entries, payload = _open(memoryview(frame))
    match header.kind:
        case Kind.HELLO | Kind.CHALLENGE:
            _only(header)
            nonce = _exactly(payload, NONCE)
            return Hello(nonce) if header.kind == Kind.HELLO else Challenge(nonce)
        case Kind.PROOF:
            _only(header)
            return Proof(*_PROOF.unpack(_exactly(payload, _PROOF.size)))
        case Kind.WELCOME:
            _only(header)
            return _welcome(*_WELCOME.unpack(_exactly(payload, _WELCOME.size)))
        case Kind.ENCODE:
            _only(header, "request", "count")
            return _encode_tiles(header, entries, *_THRESHOLDS.unpack(_exactly(payload, _THRESHOLDS.size)))
        case Kind.NEED:
            _only(header, "request", "count")
            _exactly(payload, 0)
            return Need(header.request, _names(entries))
        case Kind.TILE:
            _only(header, "request", "count")
            [name] = _names(entries) if header.count == 1 else _refuse(f"a TILE of {header.count} entries")
            return TilePixels(header.request, name, _sized(payload, shape.pixel_bytes))
        case Kind.FEATURES:
            _only(header, "request", "count", "tokens", "width", "dtype", "flags")
            return _kept_features(header, entries, payload, shape)
        case Kind.ERROR:
            _only(header, *(["request"] if header.request else []))
            return _fault(header, payload)
        case Kind.CANCEL:
            _only(header, "request")
            _exactly(payload, 0)
            return Cancel(header.request)
        case Kind.PING | Kind.PONG | Kind.BYE:
            _only(header)
            _exactly(payload, 0)
            return Ping() if header.kind == Kind.PING else Pong() if header.kind == Kind.PONG else Bye()
    raise WireError(f"a message of kind {header.kind}, which version {VERSION} does not have")


@dataclasses.dataclass(frozen=True)
class _Header:
    magic: bytes
    version: int
    kind: int
    request: int
    count: int
    tokens: int
    width: int
    dtype: int
    flags: int
    spare: int


_FIELDS = ("request", "count", "tokens", "width", "dtype", "flags", "spare")
_MAYBE = ("dtype", "flags")


def _frame(kind: Kind, request: int = 0, entries: Sequence[Entry] = (), payload: Buffer = b"", **sizes: int) -> bytes:
    fields = {"request": request, "count": len(entries), **sizes}
    header = _HEADER.pack(MAGIC, VERSION, kind, *(fields.get(name, 0) for name in _FIELDS))
    return b"".join([header, *(_ENTRY.pack(*entry) for entry in entries), payload])


def _open(frame: memoryview) -> tuple[_Header, list[Entry], memoryview]:
    """Header, entries and payload; the latter's length is still to be checked."""
    if len(frame) < _HEADER.size:
        _refuse(f"a header of {len(frame)} bytes")
    header = _Header(*_HEADER.unpack_from(frame))
    if header.magic != MAGIC:
        _refuse("a header that does not begin with IVDV")
    if header.version != VERSION:
        raise WireError(
            f"the other side speaks version {header.version} of the wire, this one {VERSION}; install the same release "
            "on both",
            Code.VERSION,
        )
    end = _HEADER.size + header.count * _ENTRY.size
    if header.count > MOST_ENTRIES or len(frame) < end:
        _refuse(f"a message of {len(frame)} bytes for {header.count} entries")
    return header, [Entry(*values) for values in _ENTRY.iter_unpack(frame[_HEADER.size : end])], frame[end:]


def _only(header: _Header, *fields: str) -> None:
    """Refuses a header where one of these fields is 0 (but for `_MAYBE`), or any other is not."""
    for name in _FIELDS:
        number = vars(header)[name]
        if (number and name not in fields) or (not number and name in fields and name not in _MAYBE):
            _refuse(f"a message of kind {header.kind} whose field {name} is {number}")


def _sized(payload: memoryview, size: int) -> memoryview:
    if len(payload) != size:
        _refuse(f"a payload of {len(payload)} bytes instead of {size}")
    return payload


def _exactly(payload: memoryview, size: int) -> bytes:
    return bytes(_sized(payload, size))


def _names(entries: Sequence[Entry]) -> tuple[bytes, ...]:
    if any(entry.mark or not math.isnan(entry.probability) for entry in entries):
        _refuse("entries with more than names")
    names = tuple(entry.name for entry in entries)
    if len(set(names)) < len(names):
        _refuse("a name that stands twice")
    return names


def _share(number: float, what: str) -> float:
    if not (math.isnan(number) or 0 <= number <= 1):
        _refuse(f"{what} of {number}")
    return number


def _welcome(digest: bytes, weights: bytes, credits: int, timeout: float) -> Welcome:
    if not credits or not 0 < timeout < math.inf:
        _refuse(f"a WELCOME with {credits} credits and a timeout of {timeout}")
    return Welcome(digest, weights, credits, timeout)


def _encode_tiles(header: _Header, entries: list[Entry], relative: float, absolute: float) -> EncodeTiles:
    for entry in entries:
        _share(entry.probability, "a probability")
        if entry.mark > FULL + COMPRESSED:
            _refuse(f"an entry whose mark is {entry.mark}")
    _share(relative, "a relative threshold")
    _share(absolute, "an absolute threshold")
    return EncodeTiles(header.request, tuple(entries), relative, absolute)


def _kept_features(header: _Header, entries: list[Entry], payload: memoryview, shape: TileShape) -> KeptFeatures:
    request, tokens, width, dtype, flags = header.request, header.tokens, header.width, header.dtype, header.flags
    fits = tokens in (shape.tokens, shape.compressed) and width == shape.width and flags <= _WITHOUT
    if len(entries) != 1 or entries[0].mark != tokens or not fits or (dtype == 0) != bool(flags):
        _refuse(f"FEATURES of {len(entries)} entries, {tokens} tokens, width {width}, dtype {dtype}, flags {flags}")
    probability, values_PD = _share(entries[0].probability, "a probability"), None
    if flags:
        _exactly(payload, 0)
    else:
        number = DTYPES[dtype] if dtype in DTYPES else _refuse(f"FEATURES of dtype {dtype}")
        values_PD = np.frombuffer(_sized(payload, tokens * width * number.itemsize), number).reshape(tokens, width)
    return KeptFeatures(request, entries[0].name, probability, tokens, width, dtype, values_PD)


def _fault(header: _Header, payload: memoryview) -> WireFault:
    if not _CODE.size <= len(payload) <= _CODE.size + MOST_TEXT:
        _refuse(f"an ERROR of {len(payload)} bytes")
    text = bytes(payload[_CODE.size :]).decode("utf-8", "replace")
    clean = "".join(letter if letter.isprintable() else " " for letter in text)  # it will stand in logs
    return WireFault(header.request, _CODE.unpack_from(payload)[0], clean)


def _cut(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:MOST_TEXT].decode("utf-8", "ignore").encode()


def _refuse(what: str) -> NoReturn:
    raise WireError(f"the other side sent {what}; install the same release on both, and let nobody else use the port")
