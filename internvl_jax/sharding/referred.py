"""A base that a checkpoint refers to: where it lies, and whether it is still the one that it was.

What is trained beside a frozen base is small; the base is not stored again with every step.
"""

import hashlib
import os
import pathlib
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.sharding.params_io import locate
from internvl_jax.validation import Fields

_SMALL = 1 << 16  # bytes of a file that is read whole: what says which files hold the values, under names of their own


def refer(directory: str | os.PathLike) -> dict[str, str]:
    """What is noted of a base, a model directory or the last step of a workdir."""
    directory = pathlib.Path(directory)
    return {"path": str(directory.absolute()), "digest": _digest(directory)}


def follow(record: Any, file: pathlib.Path) -> pathlib.Path:
    """The directory of a base.

    Args:
      record: what `refer` made.
      file: where it stands.

    Raises:
      InputError: the base is not there, or has changed.
    """
    fields = Fields(file, "base", record if isinstance(record, dict) else {})
    path = pathlib.Path(fields.get("path", str))
    if not path.is_dir():
        raise InputError(f"{file}: its base {path} is not there; put it back, or correct base.path there")
    if _digest(path) != fields.get("digest", str):
        raise InputError(f"{file}: its base {path} is not what it was when the adapter was trained; put that back")
    return path


def _digest(directory: pathlib.Path) -> str:
    checkpoint, found = locate(directory), hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        size = path.stat().st_size
        found.update(f"{path.relative_to(checkpoint)} {size}\n".encode())
        if size <= _SMALL:
            found.update(path.read_bytes())
    return found.hexdigest()
