"""The compilation cache that the processes of a test session share, safe to share."""

import os
import pathlib

from jax._src.lru_cache import LRUCache


def write_whole() -> None:
    """Makes JAX write an entry under another name first.

    JAX 0.10 writes in place: the other worker could read half of one, and so could anyone after a process that a test
    killed. Where another version of JAX looks for entries elsewhere, nothing is found, and all is compiled.
    """

    def put(self: LRUCache, key: str, value: bytes) -> None:
        entry = pathlib.Path(self.path, f"{key}-cache")
        partial = entry.with_name(f"{key}.{os.getpid()}")
        partial.write_bytes(value)
        partial.replace(entry)

    LRUCache.put = put
