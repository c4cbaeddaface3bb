"""Parameters on disk: an orbax checkpoint that holds the flat dict under the name `params`.

Both `MODEL/params` and `WORKDIR/checkpoints/STEP` are such checkpoints (the latter hold an optimizer as well). Models
read and write them whole; converters, which must not hold a whole parameter, slice by slice (`open_arrays`,
`create_arrays`). Every chunk has a checksum, which reading checks: slices that of `checked`, and what orbax writes, and
compresses, a CRC-32C. Checkpoints without are read as well. orbax is imported where something is written: it takes a
sixth of a second, which `--help` and whoever only reads do without.
"""

import concurrent.futures
import contextlib
import functools
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from internvl_jax import interrupts
from internvl_jax.errors import InputError
from internvl_jax.sharding.checked import StoredArray, WritableArray
from internvl_jax.sharding.flat import Params
from internvl_jax.validation import first_line

ITEM = "params"
# What damaged files make orbax and tensorstore raise.
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)

_LOG = logging.getLogger(__name__)
_STEP = re.compile(r"0|[1-9][0-9]*")  # the name of a whole step; one that is being written has a longer one
_READ, _WRITTEN = r"[\\\ud800-\udfff]", r"[\\\ud800-\udfff[]"  # see `checkpoint_path`
_READERS = 4  # parameters that are read at a time

# The largest chunk, in bytes: converters read a chunk at a time, and a parameter of stacked layers can have 100 GB.
_CHUNK = 1 << 26
# The least part of an array, in bytes, that devices which all hold it write one of each: orbax compiles a program for
# every such part, hundreds for a model's small parameters.
_SHARED = 1 << 20


def saving_options() -> contextlib.AbstractContextManager[Any]:
    """orbax's settings for whatever holds parameters; use as a context manager."""
    import orbax.checkpoint.experimental.v1 as ocp

    _add_checksums()
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = _CHUNK
    context.array.saving.min_slice_bytes_for_replica_parallel = _SHARED
    return context


def locate(directory: str | os.PathLike) -> pathlib.Path:
    """The checkpoint in a model directory, or the last one of a training workdir.

    Raises:
      InputError: there is neither.
    """
    directory = pathlib.Path(directory)
    if (directory / "params").is_dir():
        return directory / "params"
    steps = step_names(directory / "checkpoints")
    folders = [path for path in steps.values() if path.is_dir()]
    if not folders:
        raise InputError(f"{directory} holds neither params/ nor checkpoints/STEP; give a model directory or a workdir")
    # A folder without parameters is somebody else's, if there is one with them.
    return max(folders, key=lambda path: ((path / ITEM).is_dir(), int(path.name)))


def step_names(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """What has the name of a step in a folder of checkpoints, by its number; it need not be one."""
    return {int(path.name): path for path in folder.glob("*") if _STEP.fullmatch(path.name)}


def checkpoint_path(checkpoint: str | os.PathLike, unusable: str = _WRITTEN) -> pathlib.Path:
    """The absolute path of a checkpoint that is to be written, or read.

    To tensorstore a backslash is a slash; to orbax, which loses what it writes there, a bracket a pattern; both want
    UTF-8.

    Raises:
      InputError: a name of which they would make another.
    """
    path = pathlib.Path(checkpoint).absolute()
    if found := re.search(unusable, str(path.resolve())):
        raise InputError(f"{str(path)!r} has {found.group()!r} in its name, which checkpoints can't have; rename it")
    return path


@interrupts.held()  # orbax's threads can't be stopped, and would go on after what tidies up
def write_params(checkpoint: str | os.PathLike, params: Params) -> None:
    """Writes a new checkpoint; it is there under its name only when whole.

    Raises:
      InputError: it exists, or could not be written (no room, no permission).
    """
    import orbax.checkpoint.experimental.v1 as ocp

    path = checkpoint_path(checkpoint)
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
      InputError: no such checkpoint, or it is damaged.
    """
    arrays = open_arrays(checkpoint)
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}


def read_params(
    checkpoint: str | os.PathLike,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    ignore: str = "$^",
    seen: Callable[[Mapping[str, StoredArray]], Mapping[str, Any]] = dict,
) -> Params:
    """Reads every parameter of `abstract` in its dtype onto its sharding; each device reads only what it holds.

    Args:
      checkpoint: what `locate` returns.
      abstract: for every parameter its shape, dtype and sharding; one without a sharding must be there and is not read.
      ignore: a pattern of paths; parameters whose paths it matches may be in the checkpoint besides.
      seen: makes of the arrays of the checkpoint others, also with `shape` and `read`, that are read in their place.

    Raises:
      InputError: no such checkpoint, it is damaged, or its parameters are not exactly those of `abstract`.
    """
    path = pathlib.Path(checkpoint).absolute()
    arrays = seen(open_arrays(path))
    stored = {name: array for name, array in arrays.items() if name in abstract or not re.search(ignore, name)}
    wrong = [f"{name} is missing" for name in sorted(abstract.keys() - stored.keys())]
    wrong += [f"{name} is not of this model" for name in sorted(stored.keys() - abstract.keys())]
    for name in sorted(abstract.keys() & stored.keys()):
        if tuple(stored[name].shape) != tuple(abstract[name].shape):
            wrong.append(f"{name} is {tuple(stored[name].shape)}, not {tuple(abstract[name].shape)}")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError(f"{path} does not fit the model: {'; '.join(wrong[:8])}{more}; give the model's own config")
    names = [name for name in abstract if abstract[name].sharding is not None]
    # By tensorstore alone: orbax prints traces of whatever else it was reading when one parameter is damaged.
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        try:
            read = pool.map(lambda name: _read(arrays[name], abstract[name]), names)
            return dict(zip(names, read, strict=True))
        except DAMAGE as error:
            raise damaged(path, error) from error


def _read(array: Any, abstract: jax.ShapeDtypeStruct) -> jax.Array:
    """A parameter in its dtype and place; a slice that several devices hold is read once."""
    read = functools.cache(lambda *bounds: array.read(tuple(slice(*each) for each in bounds), abstract.dtype))
    bounds = lambda index: tuple(part.indices(size)[:2] for part, size in zip(index, abstract.shape, strict=True))
    return jax.make_array_from_callback(abstract.shape, abstract.sharding, lambda index: read(*bounds(index)))


def open_arrays(checkpoint: str | os.PathLike) -> dict[str, StoredArray]:
    """Every parameter as an array on disk, of which slices can be read.

    Raises:
      InputError: no such checkpoint, or it is damaged.
    """
    path = checkpoint_path(checkpoint, _READ)
    if not (path / ITEM / "_METADATA").exists():
        raise InputError(f"{path} is no checkpoint with parameters: it has no {ITEM}/_METADATA; give another path")
    try:
        layout = json.loads((path / ITEM / "_METADATA").read_text(encoding="utf-8"))
        names = [leaf["key_metadata"][0]["key"] for leaf in layout["tree_metadata"].values()]
        spec = {
            "driver": "zarr3" if layout["use_zarr3"] else "zarr",
            # A missing chunk is one of zeros where those are not stored, and lost elsewhere.
            "fill_missing_data_reads": not layout.get("store_array_data_equal_to_fill_value", False),
        }
        stores = {name: _store(path, name, layout["use_ocdbt"]) for name in names}
        opened = {name: ts.open({**spec, "kvstore": store}, open=True) for name, store in stores.items()}
        return {name: StoredArray(array.result(), path, name) for name, array in opened.items()}
    except DAMAGE as error:
        raise damaged(path, error) from error


@interrupts.held()  # as `write_params`
def create_arrays(
    checkpoint: str | os.PathLike, specs: Mapping[str, jax.ShapeDtypeStruct], chunks: Mapping[str, tuple[int, ...]]
) -> dict[str, WritableArray]:
    """A new checkpoint whose parameters wait to be written, slice by slice; whole chunks can be written side by side.

    orbax writes everything that isn't an array. Values are not compressed: weights are nearly random bits.

    Args:
      checkpoint: a path where nothing is yet.
      specs: shape and dtype of every parameter.
      chunks: for every parameter the shape of a chunk: what is written, and later read, at a time.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    path = checkpoint_path(checkpoint)
    ocp.save_checkpointables(path, {ITEM: {name: np.zeros(()) for name in specs}})
    # One database, opened once and written once: for each array by itself it takes ten times as long.
    context, together = ts.Context(), ts.Transaction(atomic=True)
    opened = {
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
            context=context,
            transaction=together,
        )
        for name, spec in specs.items()
    }
    arrays = {name: array.result() for name, array in opened.items()}
    together.commit_sync()
    return {name: WritableArray(array.with_transaction(None)) for name, array in arrays.items()}


def _store(checkpoint: pathlib.Path, name: str, ocdbt: bool) -> dict[str, Any]:
    folder = checkpoint.resolve() / ITEM  # without the `..` that tensorstore refuses
    if ocdbt:
        # No URL: in one, the #, ? and % of a folder's name would mean something.
        return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}, "path": f"{name}/"}
    return {"driver": "file", "path": f"{folder / name}/"}


@functools.cache  # once a process
def _add_checksums() -> None:
    """Has orbax end every chunk with a checksum, for which it has no setting."""
    from orbax.checkpoint._src.serialization import tensorstore_utils

    try:
        build = tensorstore_utils._build_zarr3_metadata
    except AttributeError:
        _LOG.warning("this version of orbax writes checkpoints without checksums of their weights")
        return

    def build_with_checksum(*args: Any, **kwargs: Any) -> Any:
        metadata = build(*args, **kwargs)
        codecs = metadata["codecs"]
        inner = codecs[0]["configuration"]["codecs"] if codecs[0]["name"] == "sharding_indexed" else codecs
        inner.append({"name": "crc32c"})
        return metadata

    tensorstore_utils._build_zarr3_metadata = build_with_checksum


def damaged(checkpoint: pathlib.Path, error: Exception, advice: str = "copy or convert it again") -> InputError:
    """The sentence about a checkpoint that can't be read, whatever a library said about it."""
    if isinstance(error, InputError):
        return error
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # or it shows what orbax's other readers met
    root: BaseException = error
    while cause := root.__cause__ or (None if root.__suppress_context__ else root.__context__):
        root = cause  # orbax wraps what it was told
    where = next((path for path in _json_files(checkpoint) if not _is_json(path)), checkpoint)
    return InputError(f"{where} is damaged or incomplete ({first_line(root)}); {advice}")


def _json_files(checkpoint: pathlib.Path) -> list[pathlib.Path]:
    """The files that orbax reads as JSON, of every item of a checkpoint."""
    names = ("_METADATA", "_sharding", "array_metadatas/*", "metadata")
    return [checkpoint / "_CHECKPOINT_METADATA", *(path for name in names for path in checkpoint.glob(f"*/{name}"))]


def _is_json(path: pathlib.Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return True
