"""What ends a program with one line on stderr instead of a traceback."""


class InputError(ValueError):
    """Bad input: one sentence that says what, where and what to do. Launchers exit with code 1."""


class Stopped(Exception):
    """A run that was asked to stop has saved and ended: one sentence that says where."""
