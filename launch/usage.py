"""What launchers say of their flags: --help, and what is wrong with those that are given."""

import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import flags

WORDS = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}
_SHORT = "RESOURCE_EXHAUSTED: "
# What absl and Python say of wrong flags, and what we do.
_CLEARER = {
    r"flag --(\w+)=None: Flag --\w+ must have a value other than None\.": r"--\1 is missing; give it as --\1=...",
    r"flags [^:]*: Exactly one of \((\w+), (\w+)\) must have a value other than None\.": r"give either --\1 or --\2",
    r"flag (--\w+=.*): invalid literal for int\(\) .*": r"\1 is no whole number",
    r"flag (--\w+=.*): could not convert string to float: .*": r"\1 is no number",
}


def show(main: Callable, more: str) -> NoReturn:
    """What a launcher says of itself, the flags that it takes, wherever they are defined, and `more`; then ends."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who pages through it may leave
    print(sys.modules[main.__module__].__doc__.strip(), end="\n\n")
    for module in sorted(flags.FLAGS.flags_by_module_dict(), key=lambda module: module != sys.argv[0]):  # its own first
        if module == sys.argv[0] or module.startswith("launch."):
            print("\n".join(flags.FLAGS.module_help(module).strip().split("\n")[1:]))
    print(f"\n{more}" if more else "")
    sys.exit(0)


def want(error: MemoryError | RuntimeError) -> str:
    """What to do where memory is short, the host's or a device's; raises any other error again."""
    said = str(error).split("\n")[0]
    if isinstance(error, RuntimeError) and not said.startswith(_SHORT):  # JAX's own error is a RuntimeError
        raise error
    return f"memory is short ({said.removeprefix(_SHORT)}); docs/TROUBLESHOOTING.md says what takes less"


def sentence(error: Exception) -> str:
    """What is wrong with a flag."""
    said = str(error)
    for theirs, ours in _CLEARER.items():
        said = re.sub(theirs, ours, said)
    return said
