"""How every launcher starts: flags in, one clear sentence and exit code 1 where the input is bad."""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from internvl_jax.errors import InputError

_HELP = ("--help", "-help", "-?", "--helpshort", "--helpfull")


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses flags and calls `main(argv)`, as `absl.app.run` does, for use under `if __name__ == "__main__"`.

    Unknown flags and wrong values, arguments that are no flags, an `InputError` (bad files, settings, data) and an
    `OSError` (file missing, disk full) become one line on stderr and exit code 1. `--help` exits with 0. What `main`
    returns is the exit code, None being 0. Any other exception is a fault of the program and shows its traceback.
    """

    def guarded(argv: list[str]) -> int | None:
        logging.set_verbosity(logging.WARNING)  # orbax tells every rename; what we say has its own level
        try:
            return main(argv)
        except (InputError, OSError) as error:
            _fail(error)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:
        if any(argument in _HELP for argument in argv):
            sys.exit(0)  # absl prints the help and exits with 1
        raise
    # config_flags raises the last three for fields that a config does not have, or values of another type.
    except (flags.Error, InputError, OSError, KeyError, AttributeError, TypeError) as error:
        _fail(f"{_sentence(error)} (--help lists the flags)")
    if len(rest) > 1:
        _fail(f"argument {rest[1]!r} is no flag; flags are written --name=value (--help lists them)")
    return rest


def _sentence(error: Exception) -> str:
    # str(KeyError) is the repr of its message.
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _fail(problem: object) -> NoReturn:
    print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
    sys.exit(1)
