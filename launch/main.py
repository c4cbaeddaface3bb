"""How every launcher starts: flags in, one clear sentence and exit code 1 where the input is bad."""

import io
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from internvl_jax import interrupts
from internvl_jax.errors import InputError
from launch import cpu_threads, imported, usage


def run(
    main: Callable[[list[str]], int | None],
    take: Callable[[list[str]], list[str]] = list,
    explain: Callable[[], str] = str,
) -> None:
    """Parses flags and calls `main(argv)`, as `absl.app.run` does, for use under `if __name__ == "__main__"`.

    Unknown flags and wrong values, arguments that are no flags, an `InputError` (bad files, settings, data), an
    `OSError` (file missing, disk full) and want of memory become one line on stderr and exit code 1. `--help` exits
    with 0. What `main` returns is the exit code, None being 0. Ctrl-C is one line and exit code 130, SIGTERM one line
    and 143, once `main` has tidied up. Any other exception is a fault of the program and shows its traceback.

    Args:
      take: called with the arguments before flags are parsed; returns those that are left for that.
      explain: text that `--help` shows after the flags.
    """

    def guarded(argv: list[str]) -> int | None:
        imported()
        logging.set_verbosity(logging.WARNING)  # orbax tells every rename; what we say has its own level
        try:
            return main(argv)
        except (InputError, OSError) as error:
            _fail(error)
        except (MemoryError, RuntimeError) as error:
            _fail(usage.want(error))
        except KeyboardInterrupt:
            interrupts.leave(interrupts.INTERRUPTED)
        except SystemExit as ended:
            if ended.code != interrupts.TERMINATED:
                raise
            interrupts.leave(interrupts.TERMINATED)

    def parse(argv: Sequence[str]) -> list[str]:
        if usage.WORDS.intersection(argv):
            usage.show(main, explain())
        try:
            rest = flags.FLAGS(take(flags.FLAGS.read_flags_from_files(argv, force_gnu=False)))
        except (flags.Error, OSError) as error:
            _fail(f"{usage.sentence(error)} (--help lists the flags)")
        if len(rest) > 1:
            _fail(f"argument {rest[1]!r} is no flag; flags are written --name=value (--help lists them)")
        return rest

    if isinstance(sys.stdout, io.TextIOWrapper):  # unless it is closed: what it can't show is no reason to end
        sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, interrupts.end_in_order)
    cpu_threads.provide()
    app.run(guarded, flags_parser=parse)


def _fail(problem: object) -> NoReturn:
    print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
    sys.exit(1)
