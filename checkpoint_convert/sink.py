"""Writing a model directory of this project: all of it appears under its name, or nothing does."""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.sharding import params_io
from internvl_jax.sharding.state import Params


@contextlib.contextmanager
def whole_or_nothing(destination: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """Yields a directory beside `destination` to write into; on leaving without an error it takes that name.

    What a killed run left behind is removed by the next one.

    Args:
      destination: must not exist, unless as an empty directory.
      size: bytes that will be written, at least.

    Raises:
      InputError: the destination exists, or the disk has no room for it.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination} already exists; remove it or choose another --dst")
    partial = destination.with_name(f"{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < size:
            raise InputError(
                f"the disk of {destination} has {free / 1e9:.2f} GB free but {size / 1e9:.2f} GB are to be written; "
                "make room or choose another --dst"
            )
        yield partial
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already where it took its name


def write_model_directory(directory: pathlib.Path, config: Mapping[str, Any], params: Params) -> None:
    """`config.json` and `params/`, an orbax checkpoint of the flat dict."""
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    params_io.write_params(directory / "params", params)
