"""A server in a process of its own, with the processes that it starts."""

import contextlib
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from internvl_jax.errors import InputError

_PAGE = os.sysconf("SC_PAGE_SIZE")


class ServerProcess:
    """`python -m launch.serve` at a free port of this machine; ready once it is made.

    Args:
      flags: of the launcher.
      log: a file for what it says; None: stderr.

    Attributes:
      url: where it answers.
      pid: of the process.

    Raises:
      InputError: it can't start; its own words stand on stderr.
    """

    def __init__(self, flags: Sequence[str], log: pathlib.Path | None = None):
        arguments = [sys.executable, "-m", "launch.serve", "--port=0", *flags]
        with contextlib.ExitStack() as stack:
            words = None if log is None else stack.enter_context(open(log, "w"))
            self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=words, text=True)
        self.pid, self.url = self._process.pid, ""
        for line in self._process.stdout:
            if line.startswith("ready: "):
                self.url = line.removeprefix("ready: ").strip()
                # What it says later is read too: it would stand still at a full pipe.
                threading.Thread(target=self._process.stdout.read, daemon=True).start()
                return
        code = self._process.wait()
        raise InputError(f"the server ended with exit code {code}; its own words stand in {log or 'the lines above'}")

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


@contextlib.contextmanager
def serving(
    checkpoint: str, flags: Sequence[str], vision_servers: int = 0, logs: pathlib.Path | None = None
) -> Iterator[dict[str, ServerProcess]]:
    """A server of a model as long as it lasts.

    Args:
      checkpoint, flags: of the launcher.
      vision_servers: how many of them the model's tower is in; 0: it is in the server itself.
      logs: a folder for what each says; None: stderr.

    Returns:
      the server that answers as `server`, and `vision_0` and so on.

    Raises:
      InputError: one of them can't start.
    """
    flags = [f"--checkpoint={checkpoint}", *flags]
    with contextlib.ExitStack() as stack:

        def start(name: str, *more: str) -> ServerProcess:
            process = ServerProcess([*flags, *more], logs and logs / f"{name}.log")
            stack.callback(process.close)
            return process

        names = [f"vision_{number}" for number in range(vision_servers)]
        vision = {name: start(name, "--role=vision") for name in names}
        addresses = ",".join(each.url.removeprefix("tcp://") for each in vision.values())
        role = ["--role=language", f"--vision={addresses}"] if vision else []
        yield vision | {"server": start("server", *role)}


def _below(process: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_below(child)]
    return found
