"""The launchers: `python -m launch.NAME`, or the installed commands `internvl-NAME`."""

import sys
import types


def _tell(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """Ctrl-C is one line, as in `launch.main`, while a launcher still imports what it needs, which takes seconds."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        _usual(kind, error, trace)


_usual, sys.excepthook = sys.excepthook, _tell
