"""A checkpoint in any format -> the same checkpoint in another one.

From and to: released in GitHub format, released in HF format, a model directory of this project (also from a training
workdir). In between, everything is parameters of this project, in slices.

1. The source is opened: its config, its processor and a reader of slices. Nothing is read but headers.
2. The target is laid out whole: names, shapes, types and places of everything are known before the first byte.
3. Slices of some tens of megabytes are read, checked, cast and written by a few threads, so that reading overlaps
   writing and no parameter is ever held whole.
"""

import concurrent.futures
import dataclasses
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import logging

from checkpoint_convert import side_files
from checkpoint_convert.account import refuse
from checkpoint_convert.adapters import Adapter, MergedReader
from checkpoint_convert.export_config import released_config
from checkpoint_convert.hf_config import ARCHITECTURES, UNKNOWN_TOKEN, language_model, read_config
from checkpoint_convert.ours import open_ours
from checkpoint_convert.peft_config import FILE
from checkpoint_convert.peft_reader import read_adapter, wrapped_adapter
from checkpoint_convert.peft_writer import write_adapter
from checkpoint_convert.quantised import QuantisedReader
from checkpoint_convert.reader import Index, Reader, ReleasedReader
from checkpoint_convert.released import load_processor, released_table
from checkpoint_convert.report import ConversionReport
from checkpoint_convert.rows import Row
from checkpoint_convert.sink import SafetensorsWriter, whole_or_nothing, write_json
from checkpoint_convert.structures import specs_of
from checkpoint_convert.tables import TABLES
from internvl_jax import interrupts
from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.models import InternVLConfig, Quantised, VisionConfig, quantised_as, stored_dtype, with_quantised
from internvl_jax.sharding import params_io
from internvl_jax.validation import all_finite, first_line, read_json

Format = Literal["orbax", "github", "hf", "peft", "peft-github", "peft-hf"]
PEFT = ("peft", "peft-github", "peft-hf")

_SLICE = 1 << 26  # bytes read and written at a time
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """What is converted.

    Attributes:
      config: the config of a model, or of a vision tower alone.
      processor: None where there are no tokenizer files.
      released: the config.json that it came or once came with; None for a model trained here from scratch.
      reader: reads its parameters, those of an adapter merged in.
      adapter: the adapter that was trained beside them, or is wrapped in; None where there is none.
    """

    directory: pathlib.Path
    config: InternVLConfig | VisionConfig
    processor: Processor | None
    released: Mapping[str, Any] | None
    reader: Reader
    adapter: Adapter | None = None


def convert(
    source: str | pathlib.Path,
    destination: str | pathlib.Path,
    to: Format = "orbax",
    dtype: str | None = None,
    adapter: str | pathlib.Path | None = None,
    quantise: Quantised | None = None,
) -> ConversionReport:
    """Writes a checkpoint in another format, with everything that it needs to be loaded at once.

    Killed, it leaves nothing under the name `destination`. A checkpoint without tokenizer files becomes one without
    processor.

    Args:
      source: a released checkpoint of either format, a model directory of this project, or a training workdir, whose
        last step is taken.
      destination: must not exist.
      to: 'orbax' is the format that training and chat of this project read.
        'peft', and these with the names of modules in one of the released formats, are of the source's adapter alone;
        the others have it merged into the weights.
      dtype: the dtype to write parameters in; None keeps each as it is stored.
      adapter: the folder of a PEFT adapter to merge in.
      quantise: 'orbax' may have the products of the language model's layers in 8 bits, see `ivl.load`.

    Raises:
      InputError: a source that is broken or of an unknown kind, parameters that are not finite or not those of the
        config, a call from a process of a pod, a destination that exists or has no room, or a format without such a
        model.
    """
    start = time.perf_counter()
    if jax.process_count() > 1:  # orbax would wait for the others
        raise InputError(
            "convert can't be called by a process of a pod; run launch.convert once, before the pod starts"
        )
    source, destination = pathlib.Path(source), pathlib.Path(destination)
    checkpoint = _open(source)
    if adapter is not None:
        checkpoint = _adapted(checkpoint, pathlib.Path(adapter))
    if to in PEFT:
        return _write_adapter(checkpoint, destination, to, dtype, start)
    checkpoint = _quantised(checkpoint, quantise, to)
    specs = checkpoint.reader.specs
    if dtype is not None:
        kinds = {path: stored_dtype(path, jnp.dtype(dtype)) for path in specs}
        specs = {path: jax.ShapeDtypeStruct(spec.shape, kinds[path]) for path, spec in specs.items()}
    with whole_or_nothing(destination, sum(_nbytes(spec) for spec in specs.values())) as directory:
        try:
            if to in ("github", "hf"):
                _write_released(checkpoint, directory, specs, to)
            else:
                _write_orbax(checkpoint, directory, specs, to)
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
            if isinstance(error, InputError):
                raise
            message = first_line(error)
            raise InputError(f"writing {destination} failed ({message}); make room and run it again") from error
    return ConversionReport.since(start, checkpoint.reader.num_tensors, checkpoint.reader.nbytes)


def _open(directory: pathlib.Path) -> _Checkpoint:
    values = read_json(directory / "config.json", "give the directory of a model")
    if "format" in values:
        return _open_ours(directory, values)
    released = read_config(directory)
    processor = load_processor(directory) if side_files.has_tokenizer(directory) else None
    if released.format == "vit":
        config: InternVLConfig | VisionConfig = released.vision()
    else:
        config = released.model(processor.tokenizer.image_context if processor else _unknown(released.format))
    reader: Reader = ReleasedReader(directory, released_table(released), specs_of(config))
    adapter = wrapped_adapter(directory, config) if isinstance(config, InternVLConfig) else None
    reader = reader if adapter is None else MergedReader(reader, adapter)
    return _Checkpoint(directory, config, processor, values, reader, adapter)


def _adapted(checkpoint: _Checkpoint, directory: pathlib.Path) -> _Checkpoint:
    """A checkpoint with an adapter merged into it."""
    if isinstance(checkpoint.config, VisionConfig):
        raise InputError(f"{checkpoint.directory} is a vision tower alone; give the whole model that the adapter is of")
    if (directory / "config.json").exists() and not (directory / FILE).exists():
        raise InputError(f"{directory} is a whole checkpoint, not a PEFT adapter; convert it by itself (--src)")
    if checkpoint.config.quantised is not None:
        raise InputError(
            f"{checkpoint.directory} is quantised; merge the adapter into what it was made of (--quantise)"
        )
    if checkpoint.adapter is not None:
        raise InputError(f"{checkpoint.directory} has an adapter already; convert it first, which merges that")
    adapter = read_adapter(directory, checkpoint.config)
    return dataclasses.replace(checkpoint, reader=MergedReader(checkpoint.reader, adapter), adapter=adapter)


def _quantised(checkpoint: _Checkpoint, how: Quantised | None, to: Format) -> _Checkpoint:
    """A checkpoint with quantised weights if it is to have, or has, such; these may be told to multiply otherwise.

    Raises:
      InputError: that has no meaning for this checkpoint or format.
    """
    where = checkpoint.directory
    if isinstance(checkpoint.config, VisionConfig):
        if how is not None:
            raise InputError(f"{where} is a vision tower alone, which stays as it is; leave out --quantise")
        return checkpoint
    config, stored = with_quantised(checkpoint.config, how), checkpoint.config.quantised is not None
    if config.quantised is None:
        return checkpoint
    if stored and checkpoint.adapter is not None:
        raise InputError(
            f"{where} has an adapter beside quantised weights, which can't be merged; write the adapter alone "
            "(--to=peft), and merge it into the base (--src=BASE --adapter=DIR)"
        )
    specs = specs_of(config)
    if stored and quantised_as(specs) != quantised_as(checkpoint.reader.specs):
        raise InputError(f"{where} is quantised otherwise; convert the checkpoint that it was made of")
    if to != "orbax":
        source = f"the checkpoint that {where} was made of" if stored else "it without --quantise"
        raise InputError(f"--to={to} has no quantised weights; convert {source}")
    reader = checkpoint.reader if stored else QuantisedReader(checkpoint.reader, specs)
    return dataclasses.replace(checkpoint, config=config, reader=reader)


def _write_adapter(
    checkpoint: _Checkpoint, destination: pathlib.Path, to: Format, dtype: str | None, start: float
) -> ConversionReport:
    if checkpoint.adapter is None or isinstance(checkpoint.config, VisionConfig):
        raise InputError(f"{checkpoint.directory} has no adapter; give a run that trained one, or another --to")
    form = to.partition("-")[2] or _released_form(checkpoint.released) or "hf"
    adapter = checkpoint.adapter if dtype is None else checkpoint.adapter.cast(jnp.dtype(dtype))
    with whole_or_nothing(destination, adapter.nbytes) as directory:
        write_adapter(directory, adapter, checkpoint.config, form, str(checkpoint.directory))
    return ConversionReport.since(start, len(adapter.params), adapter.nbytes)


def _open_ours(directory: pathlib.Path, values: Mapping[str, Any]) -> _Checkpoint:
    ours = open_ours(directory, values)
    processor = Processor.from_dict(values["processor"], directory) if values.get("processor") else None
    once = directory / side_files.RELEASED_CONFIG
    if not once.exists() and ours.base is not None:
        once = ours.base / side_files.RELEASED_CONFIG
    came = read_json(once) if once.exists() else None
    return _Checkpoint(directory, ours.config, processor, came, ours.reader, ours.adapter)


def _write_orbax(
    checkpoint: _Checkpoint, directory: pathlib.Path, specs: Mapping[str, jax.ShapeDtypeStruct], to: Format
) -> None:
    chunks = {path: _chunk(spec) for path, spec in specs.items()}
    arrays = params_io.create_arrays(directory / "params", specs, chunks)

    def copy(path: str, index: Index) -> list[str]:
        piece = _cast(checkpoint.reader.read(path, index), specs[path].dtype)
        arrays[path][index].write(piece).result()
        return _not_finite(checkpoint.reader, path, index, piece)

    jobs = [(path, index) for path, spec in specs.items() for index in _grid(spec.shape, chunks[path])]
    _run(copy, jobs, checkpoint.directory)
    config, processor = checkpoint.config, checkpoint.processor
    if isinstance(config, VisionConfig):
        described = {"vision": dataclasses.asdict(config)}
    else:
        described = {"model": config.to_dict(), "processor": processor.to_dict() if processor else None}
    write_json(directory / "config.json", {"format": 1, **described})
    if checkpoint.released is not None:
        write_json(directory / side_files.RELEASED_CONFIG, checkpoint.released)
    side_files.carry(checkpoint.directory, directory, _released_form(checkpoint.released), to)
    if isinstance(config, InternVLConfig) and processor is None:
        logging.warning("%s has no tokenizer files, so the result can't be used for chat", checkpoint.directory)


def _write_released(
    checkpoint: _Checkpoint,
    directory: pathlib.Path,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    to: Literal["github", "hf"],
) -> None:
    config = checkpoint.config
    main_dtype = max((_nbytes(spec), spec.dtype.name) for spec in specs.values())[1]
    values = released_config(to, config, checkpoint.processor, main_dtype, checkpoint.released)
    family = "vit" if isinstance(config, VisionConfig) else language_model(config.text)
    rows = TABLES[to, family].rows_of(specs)
    tensors: dict[str, jax.ShapeDtypeStruct] = {}
    for row in rows:
        spec = jax.ShapeDtypeStruct(row.source_shape(specs[row.target].shape), specs[row.target].dtype)
        tensors |= {name: spec for _, names in row.names(specs[row.target].shape) for name in names}
    with SafetensorsWriter(directory, tensors) as writer:

        def copy(row: Row, position: tuple[int, ...], names: tuple[str, ...], part: slice) -> list[str]:
            spec = specs[row.target]
            rest = (part, *(slice(None) for _ in spec.shape))[: len(spec.shape) - len(position)]
            index = (*(slice(i, i + 1) for i in position), *rest)
            piece = _cast(checkpoint.reader.read(row.target, index), spec.dtype)
            piece = piece.reshape(piece.shape[len(position) :])
            for name, first_row, tensor in row.written(names, piece, part.start or 0):
                writer.write(name, first_row, tensor)
            return _not_finite(checkpoint.reader, row.target, index, piece)

        jobs = [job for row in rows for job in _jobs(row, specs[row.target])]
        _run(copy, jobs, checkpoint.directory)
    write_json(directory / "config.json", values)
    side_files.carry(checkpoint.directory, directory, _released_form(checkpoint.released), to)
    if checkpoint.processor is not None:
        side_files.complete(directory, to, checkpoint.processor)
    elif isinstance(config, InternVLConfig):
        logging.warning(
            "%s has no tokenizer files: put them beside the result, which knows no id of <IMG_CONTEXT> otherwise",
            checkpoint.directory,
        )


def _jobs(row: Row, spec: jax.ShapeDtypeStruct) -> Iterator[tuple[Row, tuple[int, ...], tuple[str, ...], slice]]:
    """A row's tensors, in slices where its pattern leaves the first axis alone."""
    shape = spec.shape[row.stacked_axes :]
    count = math.ceil(math.prod(shape) * spec.dtype.itemsize / _SLICE) if row.keeps_first_axis else 1
    step = math.ceil(shape[0] / count) if shape else 1
    for position, names in row.names(spec.shape):
        for start in range(0, shape[0], step) if count > 1 else [None]:
            yield row, position, names, slice(start, None if start is None else min(start + step, shape[0]))


def _run(job: Callable[..., list[str]], jobs: Sequence[tuple], source: pathlib.Path) -> None:
    """All jobs, several at a time; each returns the names of tensors that are not finite."""
    not_finite: set[str] = set()
    with interrupts.held() as pressed, concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        futures = [pool.submit(job, *arguments) for arguments in jobs]
        try:
            # Shown where a terminal watches.
            for future in tqdm.tqdm(concurrent.futures.as_completed(futures), "slices", len(jobs), disable=None):
                not_finite.update(future.result())
                if pressed.is_set():
                    break
        finally:
            pool.shutdown(cancel_futures=True)
    refuse(source, {"not finite": sorted(not_finite)})


def _chunk(spec: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The shape of slices: whole in the last axes, cut in the first ones until it is small enough."""
    chunk = list(spec.shape)
    for axis in range(len(chunk)):
        rest = math.prod(chunk[axis + 1 :]) * spec.dtype.itemsize
        if rest * chunk[axis] <= _SLICE:
            break
        count = math.ceil(chunk[axis] / max(1, _SLICE // rest))
        chunk[axis] = math.ceil(chunk[axis] / count)
    return tuple(chunk)


def _grid(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[Index]:
    starts = (range(0, size, step) for size, step in zip(shape, chunk, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(
            slice(start, min(start + step, size)) for start, step, size in zip(corner, chunk, shape, strict=True)
        )


def _cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if array.dtype == dtype:
        return array
    # By XLA: numpy converts between bfloat16 and float32 twenty times slower than it copies.
    with jax.default_device(jax.devices("cpu")[0]):
        return np.asarray(jnp.asarray(array).astype(dtype))


def _not_finite(reader: Reader, path: str, index: Index, piece: np.ndarray) -> list[str]:
    """Names of what is wrong with a piece; where the checkpoint's numbers are finite, its dtype can't hold them."""
    if all_finite(piece):
        return []
    return reader.not_finite(path, index) or [f"{path} as {piece.dtype.name}"]


def _unknown(form: str) -> int | None:
    return UNKNOWN_TOKEN if form == "github" else None


def _released_form(values: Mapping[str, Any] | None) -> str | None:
    form = ARCHITECTURES.get(values["architectures"][0]) if values else None
    return "github" if form == "vit" else form


def _nbytes(spec: jax.ShapeDtypeStruct) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
