"""A folder that is written line by line and may be interrupted: it appears under its name only when whole.

Until then the work stands in FOLDER.partial: settings.json says what it belongs to, and lines are appended in batches.
What a kill cut off is removed when the work goes on, so the lines are those of an uninterrupted run.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.validation import read_json, read_lines


class PartialFolder:
    """The folder OUT while it is being made.

    Args:
        out: the folder to make; it must not exist.
        settings: JSON-able; work that was begun with other settings is not taken up.
        name: the name of the file that grows line by line.

    Attributes:
        path: the partial folder's path; write further files here before `finish`.

    Raises:
        InputError: if `out` exists, or other settings began the work.
    """

    def __init__(self, out: str | os.PathLike, settings: dict[str, Any], name: str):
        self.out = pathlib.Path(out)
        self.path = self.out.with_name(f"{self.out.name}.partial")
        if self.out.exists():
            raise InputError(f"{self.out} already exists; remove it or give another name.")
        self._lines, path = self.path / name, self.path / "settings.json"
        if not path.exists():  # the first thing written, and whole or not there
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            temporary.rename(path)
        begun = read_json(path, f"remove {self.path} to start anew")
        settings = json.loads(json.dumps(settings))
        if changed := sorted(key for key in begun.keys() | settings.keys() if begun.get(key) != settings.get(key)):
            raise InputError(
                f"{self.path} was begun with another {', '.join(changed)}; go on as it was begun, or remove it to "
                "start anew."
            )

    def resume(self, batches: Sequence[int]) -> int:
        """How many of the batches, whose numbers of lines are given, are there; lines after the last are removed."""
        if not self._lines.exists():
            return 0
        with open(self._lines, "r+b") as file:
            size = done = 0
            for batch in batches:
                lines = [file.readline() for _ in range(batch)]
                if not lines[-1].endswith(b"\n"):
                    break
                size, done = size + sum(map(len, lines)), done + 1
            file.truncate(size)
        return done

    def append(self, entries: Sequence[dict[str, Any]]) -> None:
        """Adds a batch of lines."""
        with open(self._lines, "a", encoding="utf-8") as file:
            file.write("".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries))

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
        self.path.rename(self.out)
