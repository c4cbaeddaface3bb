"""A folder that is written line by line and may be interrupted: it appears under its name only when whole.

Until then the work stands in FOLDER.partial: settings.json says what it belongs to, and lines are appended.
What a kill cut off is removed when the work goes on, so the lines are those of an uninterrupted run.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.files import PartialFolder, whole_file
from internvl_jax.validation import read_json, read_lines

_SETTINGS = "settings.json"


class ResumableFolder:
    """The folder OUT while it is being made; use as a context manager, which lets go of it.

    Args:
        out: the folder to make; it must not exist, unless empty.
        settings: JSON-able; work that was begun with other settings is not taken up.
        name: the name of the file that grows line by line.

    Attributes:
        path: the partial folder's path; write further files here before `finish`.

    Raises:
        InputError: see `PartialFolder`; or other settings began the work.
    """

    def __init__(self, out: str | os.PathLike, settings: dict[str, Any], name: str):
        self.out, self._partial = pathlib.Path(out), PartialFolder(out, known=_SETTINGS)
        self.path = self._partial.path
        self._lines = self.path / name
        with contextlib.ExitStack() as failed:
            failed.callback(self._partial.release)
            self._begin(settings)
            failed.pop_all()

    def __enter__(self) -> "ResumableFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self._partial.release()

    def _begin(self, settings: dict[str, Any]) -> None:
        path = self.path / _SETTINGS
        if not path.exists():  # the first thing written, and whole or not there
            self._partial.clear()
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        begun = read_json(path, f"remove {self.path} to start anew")
        settings = json.loads(json.dumps(settings))
        if changed := sorted(key for key in begun.keys() | settings.keys() if begun.get(key) != settings.get(key)):
            raise InputError(
                f"{self.path} was begun with another {', '.join(changed)}; go on as it was begun, or remove it to "
                "start anew."
            )

    def resume(self) -> int:
        """How many lines are there; one that was cut off is removed."""
        if not self._lines.exists():
            return 0
        size = done = 0
        with open(self._lines, "r+b") as file:
            while (line := file.readline()).endswith(b"\n"):
                size, done = size + len(line), done + 1
            file.truncate(size)
        return done

    def append(self, entry: dict[str, Any]) -> None:
        """Adds a line."""
        with open(self._lines, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(entry, ensure_ascii=False)}\n")

    def entries(self) -> Iterator[dict[str, Any]]:
        """All lines so far."""
        if not self._lines.exists():
            return
        for where, entry in read_lines(self._lines):
            if not isinstance(entry, dict):
                raise InputError(f"{where} is damaged; remove {self.path} to start anew.")
            yield entry

    def finish(self) -> None:
        """Gives the folder its name."""
        self._partial.publish()
