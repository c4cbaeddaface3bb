"""The launchers: `python -m launch.NAME`, or the installed commands `internvl-NAME`."""

import gc
import sys
import types

# What a launcher imports stays, so that to look for garbage in it, again and again, is a fifth of the time it takes to
# start; `main` enables it. Under `python -m` this is the argument while modules are looked for; whoever imports a
# module of launchers for other ends keeps the garbage collector.
if sys.argv[0] == "-m":
    gc.disable()

# What the extra `serve` installs.
SERVE = {"anyio", "fastapi", "httpcore2", "llguidance", "prometheus_client", "uvicorn", "zmq"}


def _tell(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """Ctrl-C is one line, as in `launch.main`, while a launcher still imports what it needs, which takes seconds.

    So is a library that is missing there. Extension modules make an ImportError of Ctrl-C.
    """
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    elif isinstance(error, ModuleNotFoundError) and error.name in SERVE:
        print(f"error: a server needs the library {error.name}: pip install 'internvl_jax[serve]'", file=sys.stderr)
    else:
        _usual(kind, error, trace)


_usual, sys.excepthook = sys.excepthook, _tell
