"""The adapters that a server has beside its base: those that it was started with, and those that lie in a folder.

The folder is the operator's: no request names a path. It is looked at when the server starts and at every SIGHUP; what
came is loaded, what changed is loaded again, and what is gone is dropped, while answers that were begun go on with what
they have.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import pathlib
import re
import signal
import threading
from collections.abc import Mapping
from typing import Any

import jax

from checkpoint_convert import read_adapter
from internvl_jax.errors import InputError
from internvl_jax.models import InternVLConfig
from internvl_jax.serving.engine_thread import EngineFailed, EngineThread
from internvl_jax.validation import first_line

_log = logging.getLogger("internvl_jax.serving")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FILES = ("adapter_config.json", "adapter_model.safetensors")
_Stamp = tuple[pathlib.Path, tuple[tuple[int, int], ...]]


@dataclasses.dataclass(frozen=True)
class AdapterSources:
    """Where adapters come from.

    Attributes:
      given: folders of PEFT adapters by the name that requests call them.
      folder: one that has such folders, each the name of its adapter; None: there is none.
    """

    given: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    folder: pathlib.Path | None = None

    def __post_init__(self) -> None:
        for name in self.given:
            if not _NAME.fullmatch(name):
                raise InputError(f"{name!r} is no name of an adapter; take letters, digits, dots, dashes, underscores")
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(f"there is no folder {self.folder} of adapters; make it, or leave it out")

    def find(self) -> dict[str, pathlib.Path]:
        """All that are there now."""
        inside = sorted(self.folder.iterdir()) if self.folder is not None else []
        found = {path.name: path for path in inside if _NAME.fullmatch(path.name) and (path / _FILES[0]).exists()}
        return found | dict(self.given)


class ServedAdapters:
    """Keeps the adapters of an engine as the sources have them, as long as it is entered.

    Args:
      engine: the thread of the engine.
      config: of its model.
      sources: where they come from.
      taken: names of the base, which no adapter may have.
    """

    def __init__(self, engine: EngineThread, config: InternVLConfig, sources: AdapterSources, taken: tuple[str, ...]):
        self._engine, self._config, self._sources, self._taken = engine, config, sources, taken
        self._stamps: dict[str, _Stamp] = {}
        self._turn = asyncio.Lock()
        self._refreshing: set[asyncio.Task[None]] = set()
        self._before: Any = None  # what SIGHUP did

    async def __aenter__(self) -> None:
        """Loads all that are there; what of the folder can't be loaded is told in the log.

        Raises:
          InputError: one that was given can't be read or placed.
        """
        async with self._turn:  # who says SIGHUP meanwhile is heard afterwards
            if self._sources.folder is not None and threading.current_thread() is threading.main_thread():
                self._before = signal.getsignal(signal.SIGHUP)
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._refresh_soon)
            for name, directory in (await asyncio.to_thread(self._sources.find)).items():
                if name in self._sources.given:
                    await self._put(name, directory)
                else:
                    await self._put_or_tell(name, directory)

    async def __aexit__(self, *raised: object) -> None:
        if self._before is not None:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, self._before)
        for task in self._refreshing:
            task.cancel()

    def _refresh_soon(self) -> None:
        task = asyncio.ensure_future(self.refresh())
        self._refreshing.add(task)
        task.add_done_callback(self._refreshing.discard)

    @property
    def names(self) -> tuple[str, ...]:
        """Those that requests may name."""
        return tuple(self._stamps)

    async def refresh(self) -> None:
        """Makes what requests may name what the sources have now; what can't be loaded is told in the log."""
        async with self._turn:
            try:
                there = await asyncio.to_thread(self._sources.find)
            except OSError as error:
                _log.warning("adapters stay as they are, their folder can't be read: %s", error)
                return
            with contextlib.suppress(EngineFailed):  # the server ends
                for name in self._stamps.keys() - there.keys():
                    del self._stamps[name]  # requests name it no more
                    await self._engine.call(functools.partial(self._engine.engine.drop_adapter, name))
                    _log.warning("adapter %s is dropped", name)
                for name, directory in there.items():
                    await self._put_or_tell(name, directory)

    async def _put_or_tell(self, name: str, directory: pathlib.Path) -> None:
        try:
            if self._stamps.get(name) != _stamp(directory):
                await self._put(name, directory)
                _log.warning("adapter %s is loaded", name)
        except InputError as error:
            _log.warning("adapter %s is not loaded: %s", name, error)

    async def _put(self, name: str, directory: pathlib.Path) -> None:
        if name in self._taken:
            raise InputError(f"the adapter {name} has the name of the base; give one of them another name")
        stamp = _stamp(directory)
        adapter = await asyncio.to_thread(read_adapter, directory, self._config)

        def put() -> None:
            try:
                self._engine.engine.put_adapter(name, adapter.lora, adapter.params)
            except (jax.errors.JaxRuntimeError, MemoryError) as error:  # the engine goes on without it
                raise InputError(f"the device has no room for it now ({first_line(error)})") from None

        await self._engine.call(put)
        self._stamps[name] = stamp


def _stamp(directory: pathlib.Path) -> _Stamp:
    """Another one where the files are others."""
    try:
        found = [(directory / name).stat() for name in _FILES]
    except OSError:
        files = " and ".join(_FILES)
        raise InputError(f"{directory} has not both {files}; give the folder of a PEFT adapter") from None
    return directory, tuple((each.st_mtime_ns, each.st_size) for each in found)
