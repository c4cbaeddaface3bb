"""Writing a model directory of this project: all of it appears under its name, or nothing does."""

import contextlib
import errno
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from internvl_jax.errors import InputError
from internvl_jax.models import store


@contextlib.contextmanager
def whole_or_nothing(destination: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """Yields a directory beside `destination` to write into; on leaving without an error it takes that name.

    What a killed run left behind is removed by the next one.

    Args:
      destination: must not exist, unless as an empty directory.
      size: bytes that will be written, at least.

    Raises:
      InputError: the destination exists, or the disk is too small or runs full.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination} already exists; remove it or choose another --dst")
    partial = destination.with_name(f"{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < size:
            raise _full(destination, f"{size / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB free")
        yield partial
        partial.rename(destination)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        # orbax reports the system's error as the text of a ValueError
        if isinstance(error, OSError | ValueError) and not isinstance(error, InputError):
            out_of_space = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if out_of_space or "No space left" in str(error) or "quota exceeded" in str(error):
                raise _full(destination, "the system says no space is left") from error
            if isinstance(error, OSError) or "os_error_code" in str(error):
                raise InputError(f"can't write {destination} ({error}); choose a --dst that can be written") from error
        raise


def write_model_directory(directory: pathlib.Path, config: Mapping[str, Any], params: Mapping[str, jax.Array]) -> None:
    """`config.json` and `params/`, an orbax checkpoint of the flat dict."""
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    store.write_params(directory / "params", params)


def _full(destination: pathlib.Path, why: str) -> InputError:
    return InputError(f"the disk of {destination} is full: {why}; free some space or choose another --dst")
