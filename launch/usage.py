"""What --help shows."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import flags

WORDS = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}


def show(main: Callable, more: str) -> NoReturn:
    """What a launcher says of itself, the flags that it takes, wherever they are defined, and `more`; then ends."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who pages through it may leave
    print(sys.modules[main.__module__].__doc__.strip(), end="\n\n")
    for module in sorted(flags.FLAGS.flags_by_module_dict(), key=lambda module: module != sys.argv[0]):  # its own first
        if module == sys.argv[0] or module.startswith("launch."):
            print("\n".join(flags.FLAGS.module_help(module).strip().split("\n")[1:]))
    print(f"\n{more}" if more else "")
    sys.exit(0)
