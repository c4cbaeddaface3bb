"""A run and its end: what signals, faults and deaths do to it, in one process or in all of a pod.

A thread listens to signals and to the lines between processes, for the main thread may be within a step that never
ends. Whatever ends the run is one sentence on the standard error of every process, and then the process ends by
os._exit: JAX would wait for the others at its exit.

1. The first SIGTERM or SIGINT asks for an end. Process 0 asks every process which step it has come to, and while it
   answers, a process begins no other; the run ends where the furthest will stand after its step. (JAX has a service for
   this, which knows SIGTERM only and swallows the second.) The second signal ends the process at once.
2. A process that fails tells process 0, which tells the others.
3. A process that dies leaves its line, and so everybody is told.
"""

import logging
import os
import selectors
import signal
import sys
import threading
import time
import traceback
import types
from typing import Any, NoReturn

import jax

from internvl_jax import interrupts
from internvl_jax.errors import InputError, Stopped
from internvl_jax.pod import lines
from internvl_jax.pod.lines import Line
from internvl_jax.pod.place import Place
from internvl_jax.validation import first_line

STOPPED = 75  # exit code: asked to stop, saved; the same command goes on (EX_TEMPFAIL)
LOST = 76  # exit code: another process died; the same command goes on from the last checkpoint
_LOG = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PATIENCE = 2.0  # seconds until the others have heard
_BACKUP = 60  # seconds that JAX's own watch, which aborts with a dump, is behind


class Pod:
    """Use as a context manager around everything that a process does of a run; in the main thread.

    Args:
      place: which process this is; None for a run of one process.
      start_limit: seconds within which all processes must come.
      heartbeat_limit: seconds after which a silent machine is taken for dead.
      saved: whether the first signal has the run saved, as `stop` says, and the same command goes on with it. Without
        this, signals are left as they are.

    Attributes:
      process: the number of this one.

    Raises:
      InputError: not all processes came.
    """

    def __init__(
        self, place: Place | None = None, start_limit: int = 300, heartbeat_limit: int = 60, saved: bool = True
    ):
        self._saved = saved
        self.process, self._processes = (place.process, place.processes) if place else (0, 1)
        self._lines = _connect(place, start_limit, heartbeat_limit) if place else {}
        self._away: set[int] = set()  # have said that they are done
        self._step, self._steps, self._last = -1, dict[int, int](), sys.maxsize
        self._asked: signal.Signals | None = None
        self._stepping, self._ending = threading.Lock(), threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._before: list[Any] = []

    def stop(self, step: int) -> bool:
        """Whether the run is to be saved and ended now; call it before every step, on every process.

        Args:
          step: the steps taken.
        """
        with self._stepping:
            self._step = step
            return step >= self._last

    def __enter__(self) -> "Pod":
        os.set_blocking(self._waker, False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        for number, line in self._lines.items():
            self._selector.register(line, selectors.EVENT_READ, number)
        if self._saved:
            # The handlers have nothing to do: Python writes a signal's number into the pipe before it calls them.
            self._before = [signal.signal(each, lambda number, frame: None) for each in _SIGNALS]
            self._before.append(signal.set_wakeup_fd(self._waker))
        _OPEN[os.getpid()] = self
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        stopped = isinstance(error, Stopped)
        if self._lines and error is not None and not stopped:
            self._fail(error)
        for line in self._lines.values():
            line.send({"done": True})
        self.release()
        if stopped:
            print(f"stopped: {error}", file=sys.stderr)
            raise SystemExit(STOPPED)

    def release(self) -> None:
        """Gives signals back, and hangs up."""
        _OPEN.clear()
        if self._before:
            *handlers, waker = self._before
            signal.set_wakeup_fd(waker)
            for each, handler in zip(_SIGNALS, handlers, strict=True):
                signal.signal(each, handler)
        os.write(self._waker, b"\0")
        self._thread.join()
        for line in self._lines.values():
            line.close()
        os.close(self._waker)
        os.close(self._woken)

    def _listen(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    number = os.read(self._woken, 1)[0]
                    if number == 0:
                        return
                    if number in _SIGNALS:  # others may have handlers too
                        self._signalled(signal.Signals(number))
                else:
                    self._hear(key.data, self._lines[key.data])

    def _signalled(self, which: signal.Signals) -> None:
        if self._asked is not None:
            self._end(f"{which.name} came twice; what was not saved is lost", 128 + which, tell=False)
        self._asked = which
        _LOG.warning("%s: the run is saved and ends after this step; once more ends it at once", which.name)
        if self.process == 0:
            self._ask()
        else:
            self._lines[0].send({"stop": True})

    def _hear(self, number: int, line: Line) -> None:
        messages = line.read()
        if messages is None:
            self._selector.unregister(line)
            if number not in self._away:
                advice = _GO_ON if self._saved else "start all of them again"
                self._end(f"process {number} was lost (killed, or its machine is gone); {advice}", LOST)
        for message in messages or ():
            self._answer(number, message)

    def _answer(self, number: int, message: dict[str, Any]) -> None:
        match message:
            case {"done": _}:
                self._away.add(number)
            case {"end": sentence, "code": code}:
                self._end(sentence, code)
            case {"stop": _} if self.process == 0:
                self._ask()
            case {"stop": _}:
                self._stepping.acquire()
                self._lines[0].send({"step": self._step})
            case {"step": step}:
                self._steps[number] = step
                self._decide()
            case {"last": last}:
                self._last = last
                self._stepping.release()

    def _ask(self) -> None:
        """Process 0: asks all, itself included, which step they have come to."""
        if self._steps:
            return
        for line in self._lines.values():
            line.send({"stop": True})
        self._stepping.acquire()
        self._steps[0] = self._step
        self._decide()

    def _decide(self) -> None:
        """Process 0: says which step is the last, once all have answered."""
        if len(self._steps) < self._processes:
            return
        self._last = max(self._steps.values()) + 1
        for line in self._lines.values():
            line.send({"last": self._last})
        self._stepping.release()

    def _fail(self, error: BaseException) -> NoReturn:
        """Ends all processes because this one fails."""
        if isinstance(error, InputError | OSError):
            sentence = " ".join(str(error).split())
        elif isinstance(error, KeyboardInterrupt):
            self._end("interrupted", interrupts.INTERRUPTED)
        elif isinstance(error, SystemExit) and error.code == interrupts.TERMINATED:
            self._end("terminated", interrupts.TERMINATED)
        elif isinstance(error, SystemExit):
            sentence = "ended (SystemExit)"
        else:
            time.sleep(
                _PATIENCE
            )  # the death of another is told here as a fault of a collective: the thread knows better
            traceback.print_exception(error)
            sentence = f"{type(error).__name__}: {first_line(error)}"
        self._end(f"process {self.process}: {sentence}", 1)

    def _end(self, sentence: str, code: int, tell: bool = True) -> NoReturn:
        """Says why the run ends, tells the others unless they told it, and ends this process."""
        self._ending.acquire()  # and keeps it: the first sentence is the cause
        print(f"error: {sentence}", file=sys.stderr)
        if tell:
            for line in self._lines.values():
                line.send({"end": sentence, "code": code})
            if self.process == 0 and self._lines:
                time.sleep(_PATIENCE / 2)  # where JAX's coordinator ends, the others abort
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_GO_ON = "the same command goes on from the last checkpoint"
_OPEN: dict[int, Pod] = {}  # the pod of this process, by its id


def _forget() -> None:
    """A forked child has neither its parent's signals nor its lines: an open end would hide the parent's death."""
    for pod in _OPEN.values():
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for line in pod._lines.values():
            line.close()
    _OPEN.clear()


os.register_at_fork(after_in_child=_forget)


def _connect(place: Place, start_limit: int, heartbeat_limit: int) -> dict[int, Line]:
    """Joins the processes of a pod, by lines and by JAX's service."""
    if place.process == 0:
        connected = lines.gather(place.port, place.processes, start_limit)
    else:
        connected = {0: lines.call(place.host, place.port, place.process, place.processes, start_limit)}
    for line in connected.values():
        line.keep(heartbeat_limit)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM
    try:
        jax.distributed.initialize(
            f"{place.host}:{place.port}",
            place.processes,
            place.process,
            local_device_ids=place.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=start_limit,
            heartbeat_timeout_seconds=heartbeat_limit + _BACKUP,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"JAX's processes do not find each other ({first_line(error)})") from error
    return connected
