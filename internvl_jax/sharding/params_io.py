"""Parameters on disk: an orbax checkpoint that holds the flat dict under the name `params`.

Both `MODEL/params` and `WORKDIR/checkpoints/STEP` are such checkpoints (the latter hold an optimizer as well). Models
read and write them whole; converters, which must not hold a whole parameter, slice by slice (`open_arrays`,
`create_arrays`).
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import tensorstore as ts

from internvl_jax.errors import InputError
from internvl_jax.sharding.flat import Params

ITEM = "params"

# The largest chunk, in bytes: converters read a chunk at a time, and a parameter of stacked layers can have 100 GB.
_CHUNK = 1 << 26


def saving_options() -> ocp.Context:
    """orbax's settings for whatever holds parameters; use as a context manager."""
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = _CHUNK
    return context


def locate(directory: str | os.PathLike) -> pathlib.Path:
    """The checkpoint in a model directory, or the last one of a training workdir.

    Raises:
      InputError: there is neither.
    """
    directory = pathlib.Path(directory)
    if (directory / "params").is_dir():
        return directory / "params"
    # A step under its final name is whole; one being written has a longer name.
    steps = [path for path in (directory / "checkpoints").glob("*") if path.name.isdigit()]
    if not steps:
        raise InputError(f"{directory} holds neither params/ nor checkpoints/STEP; give a model directory or a workdir")
    return max(steps, key=lambda path: int(path.name))


def write_params(checkpoint: str | os.PathLike, params: Params) -> None:
    """Writes a new checkpoint; it is there under its name only when whole.

    Raises:
      InputError: it exists, or could not be written (no room, no permission).
    """
    path = pathlib.Path(checkpoint).absolute()
    if path.exists():
        raise InputError(f"{path} already exists; remove it or give another path")
    try:
        with saving_options():
            ocp.save_checkpointables(path, {ITEM: params})
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
        raise InputError(f"writing {path} failed ({first_line(error)}); make room and run it again") from error


def read_specs(checkpoint: str | os.PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter, without reading any.

    Raises:
      InputError: no such checkpoint.
    """
    path = pathlib.Path(checkpoint).absolute()
    try:
        stored = ocp.checkpointables_metadata(path).metadata[ITEM]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no checkpoint with parameters ({first_line(error)}); give another path") from error
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in stored.items()}


def read_params(
    checkpoint: str | os.PathLike, abstract: Mapping[str, jax.ShapeDtypeStruct], ignore: str = "$^"
) -> Params:
    """Reads every parameter of `abstract` in its dtype onto its sharding; each device reads only what it holds.

    Args:
      checkpoint: what `locate` returns.
      abstract: for every parameter its shape, dtype and sharding.
      ignore: a pattern of paths; parameters whose paths it matches may be in the checkpoint besides.

    Raises:
      InputError: no such checkpoint, or its parameters are not exactly those of `abstract`.
    """
    path = pathlib.Path(checkpoint).absolute()
    stored = {name: spec for name, spec in read_specs(path).items() if name in abstract or not re.search(ignore, name)}
    wrong = [f"{name} is missing" for name in sorted(abstract.keys() - stored.keys())]
    wrong += [f"{name} is not of this model" for name in sorted(stored.keys() - abstract.keys())]
    for name in sorted(abstract.keys() & stored.keys()):
        if tuple(stored[name].shape) != tuple(abstract[name].shape):
            wrong.append(f"{name} is {tuple(stored[name].shape)}, not {tuple(abstract[name].shape)}")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError(f"{path} does not fit the model: {'; '.join(wrong[:8])}{more}; give the model's own config")
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            return ocp.load_checkpointables(path, {ITEM: dict(abstract)})[ITEM]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({first_line(error)}); copy or convert it again") from error


def open_arrays(checkpoint: str | os.PathLike) -> dict[str, ts.TensorStore]:
    """Every parameter as an array on disk, of which slices can be read.

    Raises:
      InputError: no such checkpoint.
    """
    path = pathlib.Path(checkpoint).absolute()
    names = read_specs(path)
    layout = json.loads((path / ITEM / "_METADATA").read_text(encoding="utf-8"))
    driver = "zarr3" if layout["use_zarr3"] else "zarr"
    return {
        name: ts.open({"driver": driver, "kvstore": _store(path, name, layout["use_ocdbt"])}, open=True).result()
        for name in names
    }


def create_arrays(
    checkpoint: str | os.PathLike, specs: Mapping[str, jax.ShapeDtypeStruct], chunks: Mapping[str, tuple[int, ...]]
) -> dict[str, ts.TensorStore]:
    """A new checkpoint whose parameters wait to be written, slice by slice; whole chunks can be written side by side.

    orbax writes everything that isn't an array. Values are not compressed: weights are nearly random bits.

    Args:
      checkpoint: a path where nothing is yet.
      specs: shape and dtype of every parameter.
      chunks: for every parameter the shape of a chunk: what is written, and later read, at a time.
    """
    path = pathlib.Path(checkpoint).absolute()
    ocp.save_checkpointables(path, {ITEM: {name: np.zeros(()) for name in specs}})
    return {
        name: ts.open(
            {
                "driver": "zarr3",
                "kvstore": _store(path, name, ocdbt=True),
                "store_data_equal_to_fill_value": True,  # a chunk of zeros that is left out counts as lost
                "metadata": {
                    "shape": spec.shape,
                    "data_type": np.dtype(spec.dtype).name,
                    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks[name]}},
                    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
                },
            },
            create=True,
            delete_existing=True,
        ).result()
        for name, spec in specs.items()
    }


def _store(checkpoint: pathlib.Path, name: str, ocdbt: bool) -> dict[str, Any]:
    if ocdbt:
        return {"driver": "ocdbt", "base": f"file://{checkpoint / ITEM}/", "path": f"{name}/"}
    return {"driver": "file", "path": f"{checkpoint / ITEM / name}/"}


def first_line(error: Exception) -> str:
    """The first line of a library's message: the rest is its trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
