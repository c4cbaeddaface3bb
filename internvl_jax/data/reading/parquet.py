"""Rows of a parquet file by number, and the columns that MMPR-Tiny has.

data_source, prompt (list of {"role", "content"}), images (list of {"path"} or {"bytes"}),
reward_model {"ground_truth"}, extra_info {"question", ...}
"""

import bisect
import collections
import itertools
import re
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.validation import first_line

_COLUMNS = ("prompt", "images", "reward_model")
_KEPT_BYTES = 1 << 28  # so much of row groups stays in memory, beyond the one in use
_RELEASE = "MMPR-Tiny/"  # paths of the release start at its own folder, of whatever name it is here
# The released chat template puts a newline after every picture; in training text it is written out.
_BARE_PICTURE = re.compile(r"<image>(?!\n)")


class ParquetTable:
    """A parquet file, read one row group at a time; those used last stay in memory while they are small."""

    def __init__(self, path: str):
        try:
            import pyarrow.parquet  # an optional dependency
        except ImportError:
            raise InputError(f"{path} needs pyarrow to be read; install internvl_jax with the extra rl.") from None
        self.path = path
        try:
            self._file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        except (OSError, ValueError) as error:  # pyarrow's own errors are among both
            raise InputError(f"parquet file {path} cannot be read: {first_line(error)}.") from error
        names = self._file.schema_arrow.names
        if missing := [name for name in ("prompt", "reward_model") if name not in names]:
            raise InputError(f"parquet file {path} has no column {missing[0]!r}; it has {', '.join(names)}.")
        self._columns = [name for name in _COLUMNS if name in names]
        groups = range(self._file.num_row_groups)
        sizes = [self._file.metadata.row_group(group).num_rows for group in groups]
        self._firsts = list(itertools.accumulate(sizes, initial=0))
        self._groups: collections.OrderedDict[int, Any] = collections.OrderedDict()
        if not len(self):
            raise InputError(f"parquet file {path} has no rows.")

    def __len__(self) -> int:
        return self._firsts[-1]

    def row(self, index: int) -> dict[str, Any]:
        """One row as plain Python objects."""
        group = bisect.bisect_right(self._firsts, index) - 1
        try:
            table = self._groups.pop(group, None) or self._file.read_row_group(group, columns=self._columns)
            row = table.slice(index - self._firsts[group], 1).to_pylist()[0]
        except (OSError, ValueError) as error:  # among them texts that are not UTF-8
            raise InputError(
                f"{self.path}:{index + 1} cannot be read: {first_line(error)}; copy the file again."
            ) from error
        self._groups[group] = table
        while len(self._groups) > 1 and sum(kept.nbytes for kept in self._groups.values()) > _KEPT_BYTES:
            self._groups.popitem(last=False)
        return row


def read_prompt(row: dict[str, Any], name: str) -> tuple[str | None, str, str]:
    """(system text or None, question, answer) of a row.

    Raises:
        InputError: naming the row, if it has other turns or lacks one of the texts.
    """
    messages = row["prompt"] if isinstance(row["prompt"], list) else []
    turns = [(message.get("role"), message.get("content")) for message in messages if isinstance(message, dict)]
    roles = [role for role, content in turns if isinstance(content, str)]
    if roles not in (["user"], ["system", "user"]) or len(messages) != len(roles):
        raise InputError(f"{name} has a prompt that is not one user text, or a system text and a user text.")
    question = _BARE_PICTURE.sub("<image>\n", turns[-1][1])
    if not question.strip():
        raise InputError(f"{name} has an empty question; write it or remove the row.")
    model = row["reward_model"]
    answer = model.get("ground_truth") if isinstance(model, dict) else None
    if not isinstance(answer, str) or not answer.strip():
        raise InputError(f'{name} has no "ground_truth" text in its reward_model; write it or remove the row.')
    return (turns[0][1] if len(turns) == 2 else None), question, answer


def read_pictures(row: dict[str, Any], name: str) -> tuple[str | bytes, ...]:
    """The pictures of a row, encoded bytes or paths below the release's folder.

    Raises:
        InputError: naming the row, if one is neither.
    """
    pictures = []
    images = row.get("images")
    if not isinstance(images, list | None):
        raise InputError(f"{name} has images that are no list; write one or remove the row.")
    for number, image in enumerate(images or []):
        image = {"path": image} if isinstance(image, str) else {"bytes": image} if isinstance(image, bytes) else image
        found = (image.get("bytes") or image.get("path")) if isinstance(image, dict) else None
        if not isinstance(found, str | bytes) or not found:
            raise InputError(f"{name} has image {number} without path and bytes; write one or remove the row.")
        pictures.append(found.removeprefix(_RELEASE) if isinstance(found, str) else found)
    return tuple(pictures)
