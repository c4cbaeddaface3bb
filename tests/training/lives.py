"""Runs in processes of their own, on one device; a test may kill them.

They are forked from a process that has imported JAX and started nothing: importing takes longer than their steps.
"""

import multiprocessing
import os
import pathlib
import resource
import sys
from multiprocessing.connection import Connection

import jax

from internvl_jax.training import TrainConfig, train
from internvl_jax.training.run import compilation_cache
from launch import main
from tests.training import toy

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def begin(stage: str, data: pathlib.Path, workdir: pathlib.Path, **run) -> multiprocessing.Process:
    """Starts a run; `stage` is the function of `toy` that configures it."""
    return _start(_train, stage, data, workdir, run)


def fill_disk(stage: str, data: pathlib.Path, workdir: pathlib.Path, **run) -> tuple[int, str]:
    """Exit code and standard error of a run, started as launchers do, that can't write any more."""
    reader, writer = _CONTEXT.Pipe(duplex=False)
    process = _start(_train_on_full_disk, writer, stage, data, workdir, run)
    writer.close()
    with open(reader.fileno(), closefd=False) as said:
        text = said.read()
    process.join(300)
    return process.exitcode, text


def _start(target, *args) -> multiprocessing.Process:
    process = _CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def _config(stage: str, data: pathlib.Path, workdir: pathlib.Path, run: dict) -> TrainConfig:
    return getattr(toy, stage)(data, workdir, mesh="fsdp=1", **run)


def _train(stage: str, data: pathlib.Path, workdir: pathlib.Path, run: dict) -> None:
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    compilation_cache.write_whole()
    train(_config(stage, data, workdir, run))


def _train_on_full_disk(errors: Connection, *args) -> None:
    """A limit on the size of files stands for the full disk; for entries of the compilation cache too."""
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    os.dup2(errors.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    sys.argv = sys.argv[:1]
    main.run(lambda argv: train(_config(*args)))
