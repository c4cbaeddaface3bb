"""The launchers: `python -m launch.NAME`, or the installed commands `internvl-NAME`."""

import gc
import os
import signal
import sys
import types


def importing() -> None:
    """Until `imported`, what is imported is not searched for garbage, again and again: a fifth of the time that a
    launcher takes to start. And Ctrl-C ends the process: there is nothing to tidy up, and extension modules that an
    exception meets as they begin print tracebacks of their own, or crash.
    """
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def imported() -> None:
    """Says that all modules are there: Ctrl-C raises, and the garbage collector looks for what comes from now on."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()
    gc.enable()


def _leave(number: int, frame: types.FrameType | None) -> None:
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(128 + number)


# Under `python -m` this is the argument while modules are looked for; whoever imports a module of launchers for other
# ends keeps the garbage collector.
if sys.argv[0] == "-m":
    importing()

# What the extra `serve` installs.
SERVE = {"anyio", "fastapi", "httpcore2", "llguidance", "prometheus_client", "uvicorn", "zmq"}


def _tell(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """A library that is missing is one line, and so is Ctrl-C where it still raises."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    elif isinstance(error, ModuleNotFoundError) and error.name in SERVE:
        print(f"error: a server needs the library {error.name}: pip install 'internvl_jax[serve]'", file=sys.stderr)
    else:
        _usual(kind, error, trace)


_usual, sys.excepthook = sys.excepthook, _tell
