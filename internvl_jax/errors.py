"""The one exception that a launcher turns into one line on stderr and exit code 1."""


class InputError(ValueError):
    """Bad input: one sentence that says what, where and what to do."""
