"""Released checkpoints -> models in memory, or a model directory of this project.

1. config.json says which model and which table of rows.
2. The account pairs tensors with parameters, by names and shapes, and refuses anything left over.
3. Every parameter is read straight into its (sharded) array: a shard reads its slice of the mapped files only.
"""

import dataclasses
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from checkpoint_convert.account import Leaf, match, refuse
from checkpoint_convert.hf_config import ReleasedConfig, read_config
from checkpoint_convert.report import Report
from checkpoint_convert.sink import whole_or_nothing, write_model_directory
from checkpoint_convert.source import Tensor, open_directory, read_json
from checkpoint_convert.tables import TABLES, Table
from internvl_jax.data.processor import Processor
from internvl_jax.models import InternViT, InternVL, InternVLConfig, Runtime, VisionConfig
from internvl_jax.sharding import PRESETS, ParamSpec, Rules, abstract, bind, params_io, shardings
from internvl_jax.sharding.state import Params

# Stands for the id of <IMG_CONTEXT> where a GitHub-format checkpoint came without tokenizer files: no token has it.
UNKNOWN_TOKEN = -1


def load_released(
    directory: str | pathlib.Path, dtype: str = "bfloat16", mesh: Mesh | None = None, rules: Rules | None = None
) -> tuple[InternVL, Processor]:
    """Model and processor of a released checkpoint.

    Args:
      directory: config.json, safetensors and tokenizer files, GitHub or HF format.
      dtype: of parameters and activations.
      mesh, rules: where the parameters live; one device without a mesh, the fsdp preset without rules.

    Raises:
      InputError: see `load_model`; or tokenizer files that are missing.
    """
    processor = Processor.from_released(directory)
    return load_model(directory, dtype, mesh, rules, processor.tokenizer.image_context), processor


def load_model(
    directory: str | pathlib.Path,
    dtype: str = "bfloat16",
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    image_token_id: int | None = None,
) -> InternVL:
    """The model of a released checkpoint, without its processor.

    Args:
      directory: config.json and safetensors files, GitHub or HF format.
      dtype: of parameters and activations.
      mesh, rules: where the parameters live; one device without a mesh, the fsdp preset without rules.
      image_token_id: the id of <IMG_CONTEXT>; needed for GitHub-format checkpoints.

    Raises:
      InputError: see `read_config`, `open_directory` and `account.match`.
    """
    released = read_config(directory)
    config = released.model(image_token_id)
    return _load(released, lambda rngs: InternVL(config, rngs, _runtime(dtype)), dtype, mesh, rules)


def load_vision_tower(directory: str | pathlib.Path, dtype: str = "bfloat16") -> InternViT:
    """The vision tower of a checkpoint that holds nothing else (InternVisionModel)."""
    released = read_config(directory)
    config = released.vision()
    return _load(released, lambda rngs: InternViT(config, rngs, _runtime(dtype)), dtype, None, None)


def convert_to_orbax(source: str | pathlib.Path, destination: str | pathlib.Path) -> Report:
    """Writes a released checkpoint as a model directory of this project: config.json, params/ and tokenizer files.

    Parameters keep the type in which they are stored. A GitHub-format checkpoint without tokenizer files, and a vision
    tower alone, become a directory without a processor. Killed, it leaves nothing under the name `destination`.

    Raises:
      InputError: see `load_model` and `sink.whole_or_nothing`.
    """
    start = time.perf_counter()
    source, destination = pathlib.Path(source), pathlib.Path(destination)
    released = read_config(source)
    tensors = open_directory(source)
    size = sum(tensor.nbytes for tensor in tensors.values())
    with whole_or_nothing(destination, size) as directory:
        if released.format == "vit":
            config, processor = released.vision(), None
            make, described = (lambda rngs: InternViT(config, rngs, Runtime())), {"vision": dataclasses.asdict(config)}
        else:
            processor = Processor.from_released(source) if has_tokenizer(source) else None
            config = released.model(_image_token_id(released, processor))
            make = lambda rngs: InternVL(config, rngs, Runtime())
            described = {"model": config.to_dict(), "processor": processor.to_dict() if processor else None}
        params = read_params(source, released_table(released), abstract(make)[1], dtype=None)
        write_model_directory(directory, {"format": 1, **described}, params)
        if processor is not None:
            processor.tokenizer.save(directory)
        elif released.format != "vit":
            logging.warning("%s has no tokenizer files, so %s can't be used for chat", source, destination)
    return Report.since(start, len(tensors), size)


def load_bare(directory: str | pathlib.Path, dtype: str, image_token_id: int | None) -> InternVL | InternViT:
    """A model or a vision tower alone, from a released checkpoint or a model directory of this project, without the
    processor.

    Args:
      image_token_id: the id of <IMG_CONTEXT>, for checkpoints without tokenizer files.

    Raises:
      InputError: see `load_model` and `params_io.read_params`.
    """
    directory = pathlib.Path(directory)
    values = read_json(directory / "config.json")
    if "format" not in values:
        if read_config(directory).format == "vit":
            return load_vision_tower(directory, dtype)
        return load_model(directory, dtype, image_token_id=image_token_id)
    runtime = _runtime(dtype)
    if "vision" in values:
        make = lambda rngs: InternViT(VisionConfig(**values["vision"]), rngs, runtime)
    else:
        config = InternVLConfig.from_dict(values.get("model"))
        if config.image_token_id == UNKNOWN_TOKEN and image_token_id is not None:
            config = dataclasses.replace(config, image_token_id=image_token_id)
        make = lambda rngs: InternVL(config, rngs, runtime)
    graphdef, specs = abstract(make)
    wanted = {path: jax.ShapeDtypeStruct(spec.shape, dtype, sharding=_first_device()) for path, spec in specs.items()}
    return bind(graphdef, params_io.read_params(params_io.locate(directory), wanted))


def has_tokenizer(directory: pathlib.Path) -> bool:
    return any((directory / name).exists() for name in ("tokenizer.json", "vocab.json"))


def read_params(
    directory: str | pathlib.Path,
    table: Table,
    specs: Mapping[str, ParamSpec],
    dtype: str | None,
    where: Mapping[str, Sharding] | None = None,
) -> Params:
    """The parameters `specs` out of a released checkpoint.

    Args:
      directory: safetensors files.
      table: how the format and family name things.
      dtype: of the result; None keeps what the files store.
      where: sharding of every parameter; None puts all on the first device.

    Raises:
      InputError: see `open_directory` and `account.match`; or values that are not finite.
    """
    directory = pathlib.Path(directory)
    tensors = open_directory(directory)
    leaves = match(directory, tensors, table, specs)
    params: Params = {}
    not_finite: list[str] = []
    # Largest first: what reading a parameter takes besides itself comes on top of little else.
    for leaf in sorted(leaves, key=lambda leaf: -math.prod(leaf.shape)):
        sharding = _first_device() if where is None else where[leaf.row.target]
        array = jax.make_array_from_callback(leaf.shape, sharding, _reader(leaf, tensors, not_finite))
        # Cast by XLA: numpy converts between bfloat16 and float32 twenty times slower than it copies.
        params[leaf.row.target] = array if dtype is None else array.astype(dtype)
    refuse(directory, {"not finite": sorted(set(not_finite))})
    return params


def _reader(leaf: Leaf, tensors: Mapping[str, Tensor], not_finite: list[str]) -> Callable:
    """A function index -> that slice of the parameter, as the files store it."""
    row, lead = leaf.row, leaf.row.stacked_axes
    dtype = np.result_type(*{tensors[name].dtype for names in leaf.names.values() for name in names})
    done: dict[tuple, np.ndarray] = {}  # replicas of a shard ask for one slice several times

    def read(index: tuple[slice, ...]) -> np.ndarray:
        bounds = [range(*part.indices(size)) for part, size in zip(index, leaf.shape, strict=True)]
        key = tuple((bound.start, bound.stop) for bound in bounds)
        if key not in done:
            done[key] = _aligned(tuple(len(bound) for bound in bounds), dtype)
            for position in itertools.product(*bounds[:lead]):
                names = leaf.names[position]
                piece = row.forwards([tensors[name].array() for name in names], leaf.shape)[index[lead:]]
                at = tuple(place - bound.start for place, bound in zip(position, bounds[:lead], strict=True))
                done[key][at] = piece
                if not _all_finite(done[key][at]):
                    not_finite.extend(name for name in names if not _all_finite(tensors[name].array()))
        return done[key]

    return read


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory where XLA on CPU wants it: it takes the array over instead of copying it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


_ALIGNMENT = 64  # bytes
_INFINITY_BITS = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}


def _all_finite(array: np.ndarray) -> bool:
    """Three times as fast as np.isfinite on bfloat16: a float is finite where its bits without sign are below those of
    infinity."""
    bits = array.view(f"u{array.dtype.itemsize}")
    infinity = bits.dtype.type(_INFINITY_BITS[array.dtype.name])
    sign_off = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    return bool(np.max(bits & sign_off, initial=0) < infinity)


def _image_token_id(released: ReleasedConfig, processor: Processor | None) -> int | None:
    if processor is not None:
        return processor.tokenizer.image_context
    return UNKNOWN_TOKEN if released.format == "github" else None


def _first_device() -> SingleDeviceSharding:
    return SingleDeviceSharding(jax.devices()[0])


def _runtime(dtype: str) -> Runtime:
    return Runtime(dtype=jnp.dtype(dtype))


def _load(
    released: ReleasedConfig, make: Callable[[nnx.Rngs], nnx.Module], dtype: str, mesh: Mesh | None, rules: Rules | None
) -> nnx.Module:
    graphdef, specs = abstract(make)
    where = None if mesh is None else shardings(specs, mesh, rules or PRESETS["fsdp"])
    return bind(graphdef, read_params(released.file.parent, released_table(released), specs, dtype, where))


def released_table(released: ReleasedConfig) -> Table:
    if released.format == "vit":
        return TABLES["github", "vit"]
    return TABLES[released.format, released.family]
