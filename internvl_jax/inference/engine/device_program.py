"""`jax.jit`, as programs of generation need it."""

import concurrent.futures
import ctypes
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

try:
    _TRIM = ctypes.CDLL(None).malloc_trim
except (AttributeError, TypeError):  # another C library
    _TRIM = None
_AT_ONCE = 16  # compilers at work, each of which takes its memory


class DeviceProgram:
    """`jax.jit`, whose compiler's working memory goes back to the system: glibc would keep it.

    Compiling the three large programs of the 1B leaves 0.24 GB free but resident (2026-11, jax 0.10.2).
    """

    def __init__(self, function: Callable, **options: Any):
        self._jitted = jax.jit(function, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = self.num_compiled
        out = self._jitted(*args, **kwargs)
        if self.num_compiled > before and _TRIM is not None:
            _TRIM(0)
        return out

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """Traced for arrays, or for structs of their shapes, and not compiled."""
        return self._jitted.lower(*args, **kwargs)

    @property
    def num_compiled(self) -> int:
        return self._jitted._cache_size()


class ProgramCall(NamedTuple):
    """A program with what it is called with."""

    program: DeviceProgram
    given: tuple[Any, ...]
    named: dict[str, Any]


def compile_together(calls: Iterable[ProgramCall]) -> None:
    """Compiles what these calls need, several programs at a time, and runs nothing."""
    lowered = (call.program.lower(*call.given, **call.named) for call in calls)
    with concurrent.futures.ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        for _ in pool.map(lambda traced: traced.compile(), lowered):
            pass
    if _TRIM is not None:
        _TRIM(0)
