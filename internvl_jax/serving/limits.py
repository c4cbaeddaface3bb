"""What a server takes from one request and from all of them."""

import dataclasses

from internvl_jax.errors import InputError
from internvl_jax.validation import Count, Positive, check_fields


@dataclasses.dataclass(frozen=True)
class Limits:
    """All bounds; what is over one is refused before any work is done for it.

    Attributes:
      body_bytes: bytes of a request's body.
      body_seconds: seconds until the whole body has come.
      body_values: values in it, as its commas and opening brackets count them, those of texts too.
      open_bytes: bytes of the bodies of all requests that were let in and have not been answered.
      images: pictures of a request.
      image_bytes: bytes of an encoded picture.
      videos: videos of a request.
      video_bytes: bytes of an encoded video.
      pixels: pixels of a picture or a frame, by the header.
      tiles: tiles of all pictures of a request, thumbnails included, and frames of videos, a tile each.
      text_chars: characters of all texts of a request.
      schema_chars: characters of a JSON schema, a regex or all choices.
      grammar_seconds: seconds of a processor that one of them may take to compile.
      choices: answers to one request (n).
      stops: stop strings.
      default_tokens: the longest answer where a request names none.
      prompt_seconds: seconds that a request's pictures and text may take to become a prompt.
      prompt_memory: bytes of memory of the process that does it.
      fetch_seconds: seconds for one picture from another host, redirects included.
      redirects: redirects that are followed for a picture.
      waiting_requests: requests that have no token yet.
      waiting_tokens: tokens of their prompts.
      first_seconds: seconds until a request has its first token.
      total_seconds: seconds until it has ended.
    """

    body_bytes: Count = 64 << 20
    body_seconds: Positive = 60.0
    body_values: Count = 1 << 21
    open_bytes: Count = 1 << 31
    images: Count = 64
    image_bytes: Count = 20 << 20
    videos: Count = 4
    video_bytes: Count = 40 << 20
    pixels: Count = 1 << 26
    tiles: Count = 256
    text_chars: Count = 1 << 20
    schema_chars: Count = 1 << 16
    grammar_seconds: Positive = 2.0
    choices: Count = 16
    stops: Count = 16
    default_tokens: Count = 1024
    prompt_seconds: Positive = 20.0
    prompt_memory: Count = 2 << 30
    fetch_seconds: Positive = 10.0
    redirects: Count = 3
    waiting_requests: Count = 256
    waiting_tokens: Count = 1 << 20
    first_seconds: Positive = 120.0
    total_seconds: Positive = 1800.0

    def __post_init__(self) -> None:
        check_fields(self, "limits")
        if self.tiles < self.images:
            raise InputError(f"limits.tiles is {self.tiles}, but {self.images} pictures have a tile each; raise it.")
        if self.open_bytes < self.body_bytes:
            raise InputError(
                f"limits.open_bytes is {self.open_bytes}, less than the {self.body_bytes} of one body; raise it."
            )
