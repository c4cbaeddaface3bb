"""What the model writes into its compiled programs for whoever reads them (`planning`): facts that shapes don't tell.

The compiler keeps the names of scopes, within longer names. Those that carry a number are made and read here only.
"""

import re
from typing import NamedTuple

_CHUNKS = re.compile(r"chunks_if_even_(\d+)_of_(\d+)_(\d+)_percent_full")
_KEYS = re.compile(r"attention_(\d+)_keys")
_WALK = re.compile(r"keys_of_(\d+)_in_(\d+)x(\d+)_back_(\d+)x(\d+)_window_(\d+)")
_TURNS = re.compile(r"at_most_(\d+)_turns/while\b(?!/)")  # of a loop, and not of what is in it


def chunks_scope(even: int, chunks: int, full: float) -> str:
    """The scope of a branch that runs for those chunks of an expert's rows which have any: so many of all chunks, where
    experts have equal shares of the tokens, and then this share of their rows is real.
    """
    return f"chunks_if_even_{even}_of_{chunks}_{round(100 * full)}_percent_full"


def read_chunks(text: str) -> float | None:
    """How often the branch runs, as a share of all chunks; None where `text` holds no such scope."""
    found = _CHUNKS.search(text)
    return int(found.group(1)) / int(found.group(2)) if found else None


def read_full(text: str) -> float:
    """The share of a chunk's rows that is real; 1 where `text` holds no such scope."""
    found = _CHUNKS.search(text)
    return int(found.group(3)) / 100 if found else 1.0


class Walk(NamedTuple):
    """How an attention kernel that leaves out blocks of other segments goes over a row.

    Attributes:
      tokens: of a row, its keys.
      q_block, k_block: queries and keys of a block, forward and where the backward pass goes by queries.
      back_q_block, back_k_block: the same where the backward pass goes by keys.
      window: tokens that a query sees, its own included; 0: all.
    """

    tokens: int
    q_block: int
    k_block: int
    back_q_block: int
    back_k_block: int
    window: int


def keys_scope(keys: int, walk: Walk | None = None) -> str:
    """The scope of an attention kernel: keys that it multiplies a query with, on average; and where it leaves out
    blocks of other segments, which these averages are with, how it goes about it.
    """
    if walk is None:
        return f"attention_{keys}_keys"
    return (
        f"attention_{keys}_keys_of_{walk.tokens}_in_{walk.q_block}x{walk.k_block}"
        f"_back_{walk.back_q_block}x{walk.back_k_block}_window_{walk.window}"
    )


def read_walk(text: str) -> Walk | None:
    """How the kernel goes over rows; None where `text` holds no such scope, or nothing is left out."""
    found = _WALK.search(text)
    return Walk(*map(int, found.groups())) if found else None


def read_keys(text: str) -> int | None:
    """The keys a query; None where `text` holds no such scope."""
    found = _KEYS.search(text)
    return int(found.group(1)) if found else None


def turns_scope(most: int) -> str:
    """The scope of a loop that runs so often at most: data may end it earlier."""
    return f"at_most_{most}_turns"


def read_turns(text: str) -> int | None:
    """How often a loop runs at most; None where it is in no such scope itself."""
    found = _TURNS.search(text)
    return int(found.group(1)) if found else None
