"""The messages between vision and language servers; `wire` says what they mean and how they are written."""

import dataclasses
import enum
import math
from typing import NamedTuple, Self

import ml_dtypes
import numpy as np

from internvl_jax.errors import InputError
from internvl_jax.models import InternVLConfig

NAME, NONCE, FINGERPRINT = 16, 32, 64  # bytes
MOST_ENTRIES, MOST_TEXT = 4096, 1000
FULL, COMPRESSED = 1, 2  # bits of an ENCODE's marks
DTYPES = {1: np.dtype(ml_dtypes.bfloat16), 2: np.dtype(np.float32)}
HEADER_BYTES, ENTRY_BYTES = 32, 24
_PIXEL_BYTES, _MOST_BYTES, _THRESHOLD_BYTES = 3, 4, 16  # of a pixel, of a feature's number, of both thresholds

Buffer = bytes | memoryview


class Kind(enum.IntEnum):
    """Kinds of messages."""

    HELLO, CHALLENGE, PROOF, WELCOME, ENCODE, NEED, TILE, FEATURES, ERROR, CANCEL, PING, PONG, BYE = range(1, 14)


class Code(enum.IntEnum):
    """What an ERROR is about: the first six end the connection, `TOWER` the request."""

    FRAME = 1  # bytes that are no message, or none of this place
    VERSION = 2  # another version of the wire
    SECRET = 3  # a proof that the secret did not make for this connection
    MODEL = 4  # another model, preprocessing or dtype
    GREETING = 5  # no greeting, or one that is out of turn
    FULL = 6  # as many clients as there may be
    TOWER = 7  # the tower failed with tiles of this request


class WireError(InputError):
    """A message that is refused.

    Attributes:
      code: what the sender is told.
    """

    def __init__(self, text: str, code: Code = Code.FRAME):
        super().__init__(text)
        self.code = code


@dataclasses.dataclass(frozen=True)
class TileShape:
    """What both sides know of a tile, and so how long a message may be.

    Attributes:
      side: pixels.
      tokens: of a tile at full resolution.
      compressed: tokens of a compressed tile; 0 without a router.
      width: numbers of a token.
    """

    side: int
    tokens: int
    compressed: int
    width: int

    @classmethod
    def of(cls, config: InternVLConfig) -> Self:
        compressed = 0 if config.flash is None else config.tokens_per_compressed_tile
        return cls(config.vision.image_size, config.tokens_per_tile, compressed, config.text.width)

    @property
    def pixel_bytes(self) -> int:
        return self.side * self.side * _PIXEL_BYTES

    @property
    def longest(self) -> int:
        """Bytes of the longest message."""
        one = HEADER_BYTES + ENTRY_BYTES + max(self.pixel_bytes, self.tokens * self.width * _MOST_BYTES)
        return max(HEADER_BYTES + MOST_ENTRIES * ENTRY_BYTES + _THRESHOLD_BYTES, one)


class Entry(NamedTuple):
    """A tile in a header."""

    name: bytes
    mark: int = 0
    probability: float = math.nan


class Hello(NamedTuple):
    nonce: bytes


class Challenge(NamedTuple):
    nonce: bytes


class Proof(NamedTuple):
    digest: bytes
    model: bytes


class Welcome(NamedTuple):
    """Attributes:
    credits: tiles that the client may have asked for and not have got.
    timeout: seconds of silence after which the server forgets the client.
    """

    digest: bytes
    weights: bytes
    credits: int
    timeout: float


class EncodeTiles(NamedTuple):
    request: int
    entries: tuple[Entry, ...]
    relative: float = math.nan
    absolute: float = math.nan


class Need(NamedTuple):
    request: int
    names: tuple[bytes, ...]


class TilePixels(NamedTuple):
    request: int
    name: bytes
    pixels: Buffer


class KeptFeatures(NamedTuple):
    """Attributes:
    values_PD: None if the client has them.
    dtype: a code of `DTYPES`; 0 without values.
    """

    request: int
    name: bytes
    probability: float
    tokens: int
    width: int
    dtype: int
    values_PD: np.ndarray | None


class WireFault(NamedTuple):
    """An ERROR."""

    request: int
    code: int
    text: str


class Cancel(NamedTuple):
    request: int


class Ping(NamedTuple):
    pass


class Pong(NamedTuple):
    pass


class Bye(NamedTuple):
    pass


WireMessage = (
    Hello
    | Challenge
    | Proof
    | Welcome
    | EncodeTiles
    | Need
    | TilePixels
    | KeptFeatures
    | WireFault
    | Cancel
    | Ping
    | Pong
    | Bye
)
