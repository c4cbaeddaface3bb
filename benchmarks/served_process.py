"""A server in a process of its own, with the processes that it starts."""

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from internvl_jax.errors import InputError

_PAGE = os.sysconf("SC_PAGE_SIZE")


class ServerProcess:
    """`python -m launch.serve` at a free port of this machine; ready once it is made.

    Args:
      flags: of the launcher.
      python: the interpreter.

    Attributes:
      url: where it answers.
      pid: of the process.

    Raises:
      InputError: it can't start; its own words stand on stderr.
    """

    def __init__(self, flags: Sequence[str], python: str = sys.executable):
        arguments = [python, "-m", "launch.serve", "--port=0", *flags]
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        self.pid, self.url = self._process.pid, ""
        for line in self._process.stdout:
            if line.startswith("ready: "):
                self.url = line.removeprefix("ready: ").strip()
                return
        raise InputError(f"the server ended with exit code {self._process.wait()}; its own words stand above")

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def memory(self) -> dict[int, int]:
        """Bytes of memory that are in use, of it and of every process below it, by their ids."""
        found = {}
        for process in [self.pid, *_below(self.pid)]:
            with contextlib.suppress(OSError):  # it has ended by now
                found[process] = int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
        return found

    def close(self, seconds: float = 90) -> int:
        """Ends it in order; returns the exit code.

        Raises:
          InputError: it had to be killed.
        """
        self._process.terminate()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise InputError(f"the server had not ended {seconds:g} s after SIGTERM") from None
        finally:
            self._process.stdout.close()


def _below(process: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_below(child)]
    return found
