"""Files of one JSON object a line, which a run adds to."""

import pathlib
from collections.abc import Callable
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.validation import parse_json, read_file


def read_log(path: pathlib.Path, check: Callable[[Any, str], None]) -> list[dict[str, Any]]:
    """The lines, none without a file; the last one, where a kill or a power failure cut it off, is left out.

    Args:
      check: raises InputError for a value that a line can't have, naming where it stands.

    Raises:
      InputError: another line is damaged.
    """
    lines = [line for line in read_file(path).split(b"\n") if line] if path.exists() else []
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            values = parse_json(line, f"{path}:{number}")
            check(values, f"{path}:{number}")
            found.append(values)
        except InputError as error:
            if number < len(lines):
                raise InputError(f"{str(error).rstrip('.')}; remove the line") from None
    return found
