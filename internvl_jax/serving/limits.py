"""What a server takes from one request and from all of them."""

import dataclasses
from typing import Annotated

from msgspec import Meta

from internvl_jax.validation import Count, check_fields

Seconds = Annotated[float, Meta(gt=0, le=10**6)]


@dataclasses.dataclass(frozen=True)
class Limits:
    """All bounds; what is over one is refused before any work.

    Attributes:
      body_bytes: of a request's body.
      body_seconds: until the whole body has come.
      image_bytes: of one picture's file.
      pixels: of one picture.
      images: in one request.
      tiles: of all pictures of a request together.
      text_chars: of all texts of a request together.
      choices: answers to one request (n).
      stops: stop strings.
      default_tokens: the longest answer where a request names none.
      waiting_requests: requests that have no token yet.
      waiting_tokens: tokens of their prompts.
      first_seconds: until a request has its first token.
      total_seconds: until it has ended.
    """

    body_bytes: Count = 64 << 20
    body_seconds: Seconds = 60.0
    image_bytes: Count = 20 << 20
    pixels: Count = 50_000_000
    images: Count = 16
    tiles: Count = 64
    text_chars: Count = 1_000_000
    choices: Count = 16
    stops: Count = 16
    default_tokens: Count = 1024
    waiting_requests: Count = 256
    waiting_tokens: Count = 1 << 20
    first_seconds: Seconds = 120.0
    total_seconds: Seconds = 1800.0

    def __post_init__(self) -> None:
        check_fields(self, "the server's limits")
