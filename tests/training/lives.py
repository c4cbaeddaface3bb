"""Runs in processes of their own, on one device; a test may kill them."""

import multiprocessing
import os
import pathlib
import resource
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

import jax

from internvl_jax import compilation_cache
from internvl_jax.pod import Place, Pod
from internvl_jax.training import TrainConfig, train
from internvl_jax.training.run import hooks
from launch import main
from tests import forks
from tests.training import toy


def begin(stage: str, data: pathlib.Path, workdir: pathlib.Path, **run) -> multiprocessing.Process:
    """Starts a run; `stage` is the function of `toy` that configures it."""
    return forks.start(_train, stage, data, workdir, run)


def fill_disk(stage: str, data: pathlib.Path, workdir: pathlib.Path, **run) -> tuple[int, str]:
    """Exit code and standard error of a run, started as launchers do, that can't write any more."""
    reader, writer = forks.Pipe(duplex=False)
    process = forks.start(_train_on_full_disk, writer, stage, data, workdir, run)
    writer.close()
    with open(reader.fileno(), closefd=False) as said:
        text = said.read()
    process.join(300)
    return process.exitcode, text


def apart(work: Callable, *args) -> int:
    """The exit code of a process that calls `work(*args)`, on eight devices."""
    process = forks.start(work, *args)
    process.join(300)
    return process.exitcode


class Run:
    """A pod whose processes call `work(pod, number, folder)` each."""

    def __init__(self, work: Callable[[Pod, int, pathlib.Path], None], processes: int, folder: pathlib.Path):
        port, pipes = free_port(), [forks.Pipe(duplex=False) for _ in range(processes)]
        self._readers = [reader for reader, _ in pipes]
        self._processes = [
            forks.start(_work, writer, work, Place("127.0.0.1", port, processes, number), folder)
            for number, (_, writer) in enumerate(pipes)
        ]
        for _, writer in pipes:
            writer.close()
        self.ids = [process.pid for process in self._processes]

    def alive(self) -> bool:
        """Whether all processes are."""
        return all(process.is_alive() for process in self._processes)

    def ended(self) -> tuple[list[int], list[str]]:
        """Exit code and standard error of every process."""
        said = []
        for reader in self._readers:
            with open(reader.fileno(), closefd=False) as text:
                said.append(text.read())
        for process in self._processes:
            process.join(60)
        return [process.exitcode for process in self._processes], said


def _work(errors: Connection, work: Callable, place: Place, folder: pathlib.Path) -> None:
    os.dup2(errors.fileno(), 2)
    try:
        with Pod(place if place.processes > 1 else None, start_limit=60, heartbeat_limit=8) as pod:
            work(pod, place.process, folder)
    finally:
        jax.distributed.shutdown()  # as at the exit of a program; a child that multiprocessing made leaves that out


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def _config(stage: str, data: pathlib.Path, workdir: pathlib.Path, run: dict) -> TrainConfig:
    return getattr(toy, stage)(data, workdir, mesh="fsdp=1", **run)


def _train(stage: str, data: pathlib.Path, workdir: pathlib.Path, run: dict) -> None:
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    compilation_cache.write_whole()
    hooks.plot_health = lambda *_: None  # it takes a second, and nobody looks at it
    train(_config(stage, data, workdir, run))


def _train_on_full_disk(errors: Connection, *args) -> None:
    """A limit on the size of files stands for the full disk; for entries of the compilation cache too."""
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    os.dup2(errors.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    sys.argv = sys.argv[:1]
    main.run(lambda argv: train(_config(*args)))
