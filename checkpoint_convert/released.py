"""Released checkpoints -> models in memory.

1. config.json says which model and which table of rows.
2. The account pairs tensors with parameters, by names and shapes, and refuses anything left over.
3. Every parameter is read straight into its (sharded) array: a shard reads its slice of the mapped files only.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding

from checkpoint_convert.account import refuse
from checkpoint_convert.adapters import attached
from checkpoint_convert.hf_config import UNKNOWN_TOKEN, ReleasedConfig, read_config
from checkpoint_convert.peft_reader import wrapped_adapter
from checkpoint_convert.quantised import QuantisedReader
from checkpoint_convert.reader import Index, Reader, ReleasedReader
from checkpoint_convert.structures import specs_of, structure_of
from checkpoint_convert.tables import TABLES, Table
from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.models import (
    PARTS,
    CacheName,
    InternViT,
    InternVL,
    InternVLConfig,
    LanguageHalf,
    PartName,
    Quantised,
    Runtime,
    VisionConfig,
    VisionHalf,
    place,
    read_stored,
    stored_dtype,
    with_quantised,
)
from internvl_jax.sharding import Params, Rules, bind, places, structure
from internvl_jax.validation import all_finite, build, read_json


@overload
def load_released(
    directory: str | pathlib.Path,
    dtype: str = ...,
    mesh: Mesh | None = ...,
    rules: Rules | str | None = ...,
    part: Literal["all"] = ...,
    quantise: Quantised | None = ...,
    cache: CacheName | None = ...,
    skip_blocks: bool = ...,
) -> tuple[InternVL, Processor]: ...
@overload
def load_released(
    directory: str | pathlib.Path,
    dtype: str = ...,
    mesh: Mesh | None = ...,
    rules: Rules | str | None = ...,
    *,
    part: Literal["vision"],
    quantise: Quantised | None = ...,
    cache: CacheName | None = ...,
    skip_blocks: bool = ...,
) -> tuple[VisionHalf, Processor]: ...
@overload
def load_released(
    directory: str | pathlib.Path,
    dtype: str = ...,
    mesh: Mesh | None = ...,
    rules: Rules | str | None = ...,
    *,
    part: Literal["language"],
    quantise: Quantised | None = ...,
    cache: CacheName | None = ...,
    skip_blocks: bool = ...,
) -> tuple[LanguageHalf, Processor]: ...
def load_released(
    directory: str | pathlib.Path,
    dtype: str = "bfloat16",
    mesh: Mesh | None = None,
    rules: Rules | str | None = None,
    part: PartName = "all",
    quantise: Quantised | None = None,
    cache: CacheName | None = None,
    skip_blocks: bool = True,
) -> tuple[VisionHalf | LanguageHalf, Processor]:
    """Model and processor of a released checkpoint.

    Args:
      directory: config.json, safetensors and tokenizer files, GitHub or HF format.
      dtype: the dtype of parameters and activations.
      mesh, rules: where the model lives, see `Placement.of`.
      part: "vision" or "language" gives that half of the model and reads nothing of the other, whose tensors must be
        there all the same, with the names and shapes that the config says.
      quantise, cache, skip_blocks: see `ivl.load`.

    Raises:
      InputError: see `load_model`; or tokenizer files that are missing.
    """
    if part not in PARTS:
        raise InputError(f"part is {part!r}; use one of {', '.join(PARTS)}")
    processor = load_processor(directory)
    released = read_config(directory)
    config = with_quantised(released.model(processor.tokenizer.image_context), quantise)
    where = place(None if part == "vision" else config.text, mesh, rules)
    runtime = Runtime(jnp.dtype(dtype), placement=where, cache=cache, skip_blocks=skip_blocks)
    return _load(released, PARTS[part], config, runtime), processor


def load_processor(directory: str | pathlib.Path) -> Processor:
    """The processor of a released checkpoint, with its family's template where config.json names none.

    Raises:
      InputError: see `read_config` and `Processor.from_released`.
    """
    return Processor.from_released(directory, read_config(directory).language_family.template)


def read_model_config(directory: str | pathlib.Path) -> InternVLConfig:
    """The config of a model in any format, without its tokenizer: a GitHub-format one has no id of <IMG_CONTEXT>.

    Raises:
      InputError: see `read_config` and `InternVLConfig.from_dict`.
    """
    values = read_json(pathlib.Path(directory) / "config.json", "give the directory of a model")
    if "format" in values:
        return InternVLConfig.from_dict(values.get("model"))
    released = read_config(directory)
    return released.model(UNKNOWN_TOKEN if released.format == "github" else None)


def load_model(
    directory: str | pathlib.Path,
    dtype: str = "bfloat16",
    mesh: Mesh | None = None,
    rules: Rules | str | None = None,
    image_token_id: int | None = None,
    quantise: Quantised | None = None,
) -> InternVL:
    """The model of a released checkpoint, without its processor.

    Args:
      directory: config.json and safetensors files, GitHub or HF format.
      dtype: the dtype of parameters and activations.
      mesh, rules: where the model lives, see `Placement.of`.
      image_token_id: the id of <IMG_CONTEXT>; needed for GitHub-format checkpoints.
      quantise: see `ivl.load`.

    Raises:
      InputError: see `read_config`, `open_directory` and `account.match`.
    """
    released = read_config(directory)
    config = with_quantised(released.model(image_token_id), quantise)
    return _load(released, PARTS["all"], config, Runtime(jnp.dtype(dtype), placement=place(config.text, mesh, rules)))


def load_vision_tower(directory: str | pathlib.Path, dtype: str = "bfloat16") -> InternViT:
    """The vision tower of a checkpoint that holds nothing else (InternVisionModel)."""
    released = read_config(directory)
    return _load(released, InternViT, released.vision(), Runtime(jnp.dtype(dtype)))


def load_bare(
    directory: str | pathlib.Path,
    dtype: str,
    image_token_id: int | None,
    mesh: Mesh | None = None,
    rules: Rules | str | None = None,
    quantise: Quantised | None = None,
) -> InternVL | InternViT:
    """A model or a vision tower alone, from a released checkpoint or a model directory of this project, without the
    processor.

    Args:
      image_token_id: the id of <IMG_CONTEXT>, for checkpoints without tokenizer files.
      mesh, rules: where a model lives, see `Placement.of`; a tower alone lies on one device.
      quantise: see `ivl.load`; a tower alone has nothing of that.

    Raises:
      InputError: see `load_model` and `read_stored`.
    """
    directory = pathlib.Path(directory)
    values = read_json(directory / "config.json", "give the directory of a model")
    if "format" not in values:
        if read_config(directory).format == "vit":
            return load_vision_tower(directory, dtype)
        return load_model(directory, dtype, mesh, rules, image_token_id, quantise)
    runtime = Runtime(jnp.dtype(dtype))
    if "vision" in values:
        config: InternVLConfig | VisionConfig = build(VisionConfig, values["vision"], "vision of config.json")
    else:
        config = with_quantised(InternVLConfig.from_dict(values.get("model")), quantise)
        if config.image_token_id == UNKNOWN_TOKEN and image_token_id is not None:
            config = dataclasses.replace(config, image_token_id=image_token_id)
        runtime = Runtime(jnp.dtype(dtype), placement=place(config.text, mesh, rules))
    graphdef, specs = structure_of(config, runtime)
    where = places(specs, runtime.placement)
    wanted = {
        path: jax.ShapeDtypeStruct(spec.shape, stored_dtype(path, dtype), sharding=where[path])
        for path, spec in specs.items()
    }
    return bind(graphdef, read_stored(directory, wanted))


def released_table(released: ReleasedConfig) -> Table:
    if released.format == "vit":
        return TABLES["github", "vit"]
    return TABLES[released.format, f"{released.family}_mxfp4" if released.mxfp4 else released.family]


def read_params(directory: pathlib.Path, reader: Reader, dtype: jnp.dtype, where: Mapping[str, Sharding]) -> Params:
    """Parameters out of a released checkpoint.

    Args:
      directory: where it is, for errors.
      dtype: of the model.
      where: sharding of every parameter that is read.

    Raises:
      InputError: values that are not finite.
    """
    params: Params = {}
    not_finite: list[str] = []
    # Largest first: what reading a parameter takes besides itself comes on top of little else.
    for path in sorted(where, key=lambda path: -math.prod(reader.specs[path].shape)):
        shape = reader.specs[path].shape
        array = jax.make_array_from_callback(shape, where[path], _slices(reader, path, not_finite))
        # Cast by XLA: numpy converts between bfloat16 and float32 twenty times slower than it copies.
        params[path] = array.astype(stored_dtype(path, dtype))
    refuse(directory, {"not finite": sorted(set(not_finite))})
    return params


def _slices(reader: Reader, path: str, not_finite: list[str]) -> Callable[[Index], np.ndarray]:
    """A function index -> that slice of the parameter, as the files store it."""
    done: dict[tuple, np.ndarray] = {}  # replicas of a shard ask for one slice several times
    read_slice = reader.read_aligned if isinstance(reader, ReleasedReader) else reader.read

    def read(index: Index) -> np.ndarray:
        key = tuple(part.indices(size) for part, size in zip(index, reader.specs[path].shape, strict=True))
        if key not in done:
            done[key] = read_slice(path, index)
            if not all_finite(done[key]):
                not_finite.extend(reader.not_finite(path, index))
        return done[key]

    return read


def _load(
    released: ReleasedConfig, kind: Callable[..., nnx.Module], config: InternVLConfig | VisionConfig, runtime: Runtime
) -> nnx.Module:
    """A model, or a part of it; that the rest is there is checked too. Adapters that are wrapped in come along."""
    graphdef, specs = structure(kind, config, runtime)
    directory = released.file.parent
    plain = dataclasses.replace(config, quantised=None) if isinstance(config, InternVLConfig) else config
    reader: Reader = ReleasedReader(directory, released_table(released), specs_of(plain))
    if plain != config:
        reader = QuantisedReader(reader, specs_of(config))
    params = read_params(directory, reader, runtime.dtype, places(specs, runtime.placement))
    if isinstance(config, VisionConfig) or (adapter := wrapped_adapter(directory, config)) is None:
        return bind(graphdef, params)
    graphdef, specs = structure(kind, dataclasses.replace(config, lora=adapter.lora), runtime)
    return bind(graphdef, attached(params, adapter, places(specs, runtime.placement), runtime.dtype))
