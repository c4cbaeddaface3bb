"""JAX's persistent compilation cache, safe to share with processes that may be killed."""

import hashlib
import logging
import os
import pathlib
import platform
import tempfile
import threading

import jax
from jax._src.lru_cache import LRUCache

_LOG = logging.getLogger(__name__)
_SECONDS = 0.1  # programs that compile faster are not worth a file


def keep_programs(folder: str | os.PathLike) -> None:
    """Keeps compiled programs in a folder, for this process and later ones; call it before anything is compiled. Of the
    processes of a pod the first one writes, all read. Where nothing can be written, a warning says so.
    """
    folder = pathlib.Path(folder).absolute() / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _LOG.warning("compiled programs are not kept: nothing can be written into %s (%s)", folder, error.strerror)
        return
    write_whole()
    least = min(_SECONDS, jax.config.jax_persistent_cache_min_compile_time_secs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def write_whole() -> None:
    """Makes JAX write an entry under another name first.

    JAX 0.10 writes in place: another process could read half of one, and so could anyone after a process that was
    killed. Where another version of JAX looks for entries elsewhere, nothing is found, and all is compiled.
    """

    def put(self: LRUCache, key: str, value: bytes) -> None:
        entry = pathlib.Path(self.path, f"{key}-cache")
        partial = entry.with_name(f"{key}.{os.getpid()}.{threading.get_ident()}")
        partial.write_bytes(value)
        partial.replace(entry)

    LRUCache.put = put


def _machine() -> str:
    """A folder of its own for every kind of processor where programs are made for the processor: JAX's keys do not tell
    them apart, and an instruction that a processor lacks ends the process.
    """
    if jax.default_backend() != "cpu":
        return ""
    found = pathlib.Path("/proc/cpuinfo")
    flags = [line for line in found.read_text().split("\n") if line.startswith("flags")] if found.exists() else []
    return f"cpu-{hashlib.sha256(''.join([platform.machine(), *flags[:1]]).encode()).hexdigest()[:12]}"
