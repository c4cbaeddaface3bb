"""Processes forked from one that has imported what takes long and started nothing: importing takes two seconds, most of
what a launcher of the tests has to do none.
"""

import gc
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable

import checkpoint_convert  # noqa: F401
import launch.main  # noqa: F401

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])
Pipe = _CONTEXT.Pipe


def start(target: Callable, *args: object) -> multiprocessing.Process:
    """A process that calls `target(*args)`."""
    process = _CONTEXT.Process(target=_call, args=(target, *args))
    process.start()
    return process


def python(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    """What `python -m MODULE ...` or `python -c PROGRAM ...` does, its output as text."""
    with tempfile.TemporaryDirectory() as folder:
        said = pathlib.Path(folder)
        (said / "in").write_text(stdin)
        process = begin(said, *arguments)
        process.join()
        return subprocess.CompletedProcess(
            arguments, process.exitcode, (said / "out").read_text(), (said / "err").read_text()
        )


def begin(folder: pathlib.Path, *arguments: str) -> multiprocessing.Process:
    """The process that `python` waits for; it reads `in` of the folder, and writes `out` and `err` there."""
    return start(_python, folder, arguments)


def collect_rarely() -> None:
    """Tracing makes millions of small objects that live long: looking through them all the time is a quarter of its
    time.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


def _call(target: Callable, *args: object) -> None:
    collect_rarely()
    target(*args)


def _python(folder: pathlib.Path, arguments: tuple[str, ...]) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdin = (folder / "in").open()
    kind, program, *rest = arguments
    sys.argv = [program, *rest]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        (folder / "program.py").write_text(program)
        runpy.run_path(str(folder / "program.py"), run_name="__main__")
