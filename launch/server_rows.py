"""Flags of how many answers a server writes at a time, and how long they may be."""

from absl import flags

from internvl_jax import serving
from internvl_jax.inference import Ladders
from launch import server_flags

_ROWS = flags.DEFINE_integer("rows", 8, "answers that are written at a time", 1)
_CONTEXT = flags.DEFINE_integer("context", 4096, "tokens of a conversation with its answer, at most", 64)
_CHUNK = flags.DEFINE_integer("chunk", None, "tokens of prompts that are read between two tokens of answers", 32)
_FEATURES = flags.DEFINE_integer(
    "feature_bytes", None, "memory of features of pictures that are kept; default: of 1,024 tiles, 1 GiB at most", 1
)
_PAGE = flags.DEFINE_integer("page", None, "tokens of a page of the cache (TPU); default: rows of their own", 1)


def ladders() -> Ladders:
    """The sizes of the server's engine."""
    tiles = server_flags.limits().tiles
    return serving.ladders(_ROWS.value, _CONTEXT.value, _CHUNK.value, _PAGE.value, _FEATURES.value, tiles)
