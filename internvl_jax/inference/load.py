"""Model directories: config.json, tokenizer files and parameters.

`load` reads what `save_model` or a conversion wrote (`params/`), or the last step of a training workdir
(`checkpoints/STEP`). How parameters lie on disk is `sharding.params_io`'s business.
"""

import json
import os
import pathlib
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.files import whole_folder
from internvl_jax.models import (
    PARTS,
    CacheName,
    InternVL,
    InternVLConfig,
    LanguageHalf,
    PartName,
    Quantised,
    Runtime,
    VisionHalf,
    place,
    read_stored,
    stored_dtype,
    with_quantised,
)
from internvl_jax.sharding import (
    Params,
    ParamSpec,
    Rules,
    bind,
    places,
    structure,
    write_params,
)
from internvl_jax.validation import read_json

FORMAT = 1
DTYPES = ("bfloat16", "float16", "float32")


@overload
def load(
    directory: str | os.PathLike,
    dtype: str = ...,
    mesh: Mesh | None = ...,
    rules: Rules | str | None = ...,
    part: Literal["all"] = ...,
    quantise: Quantised | None = ...,
    cache: CacheName | None = ...,
    skip_blocks: bool = ...,
) -> tuple[InternVL, Processor]: ...
@overload
def load(
    directory: str | os.PathLike,
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
def load(
    directory: str | os.PathLike,
    dtype: str = ...,
    mesh: Mesh | None = ...,
    rules: Rules | str | None = ...,
    *,
    part: Literal["language"],
    quantise: Quantised | None = ...,
    cache: CacheName | None = ...,
    skip_blocks: bool = ...,
) -> tuple[LanguageHalf, Processor]: ...
def load(
    directory: str | os.PathLike,
    dtype: str = "bfloat16",
    mesh: Mesh | None = None,
    rules: Rules | str | None = None,
    part: PartName = "all",
    quantise: Quantised | None = None,
    cache: CacheName | None = None,
    skip_blocks: bool = True,
) -> tuple[VisionHalf | LanguageHalf, Processor]:
    """Model and processor of a model directory, or of the last step of a training workdir.

    Every parameter is read straight in `dtype` and into its place; no device or host holds more than its share.

    Args:
      directory: holds config.json, tokenizer files and `params/` or `checkpoints/`.
      dtype: the dtype of parameters and activations.
      mesh: where the model lives, of any axes of `sharding.AXES`; the first device without one.
      rules: how it is spread there, or the name of a preset; `serve_tp` without any.
      part: "vision" or "language" gives that half of the model and reads nothing of the other, whose parameters must
        be there all the same, with the names and shapes that the config says.
      quantise: "int8" holds the products of the language model's layers in 8 bits, "w8a8" also rounds what they are
        multiplied with; without it they are as the directory has them.
      cache: "float8" keeps keys and values in 8 bits; without it they are in `dtype` (on a CPU in float32).
      skip_blocks: whether attention over a long prompt leaves out blocks that hold nothing for it (padding, other
        texts); no answer depends on it.

    Raises:
      InputError: files that are missing or broken, or parameters other than those of the config.
    """
    directory = pathlib.Path(directory)
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; use one of {', '.join(DTYPES)}")
    if part not in PARTS:
        raise InputError(f"part is {part!r}; use one of {', '.join(PARTS)}")
    config, processor = read_config(directory)
    config = with_quantised(config, quantise)
    where = place(None if part == "vision" else config.text, mesh, rules)
    runtime = Runtime(jnp.dtype(dtype), placement=where, cache=cache, skip_blocks=skip_blocks)
    graphdef, specs = structure(PARTS[part], config, runtime)
    lies = places(specs, runtime.placement)
    wanted = {
        path: jax.ShapeDtypeStruct(spec.shape, stored_dtype(path, dtype), sharding=lies.get(path))
        for path, spec in _specs(config).items()
    }
    return bind(graphdef, read_stored(directory, wanted)), processor


def read_config(directory: str | os.PathLike) -> tuple[InternVLConfig, Processor]:
    """Model config and processor of a model directory or workdir, checked against each other.

    Raises:
      InputError: missing or broken files, or tokenizer and model that don't belong together.
    """
    directory = pathlib.Path(directory)
    values = read_values(directory)
    if not values.get("processor"):
        raise InputError(f"{directory} was converted without tokenizer files; convert it again with them beside it")
    config = InternVLConfig.from_dict(values.get("model"))
    processor = Processor.from_dict(values["processor"], directory)
    _check_match(directory, config, processor)
    return config, processor


def read_values(directory: str | os.PathLike) -> dict[str, Any]:
    """The config.json of a model directory or workdir, for those that need a part of it.

    Raises:
      InputError: it isn't there, or of a released checkpoint.
    """
    path = pathlib.Path(directory) / "config.json"
    values = read_json(path, "give the directory of a model or a training run")
    if values.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a config of format {FORMAT}; a released checkpoint must be converted first: "
            f"python -m launch.convert --src={directory} --dst=DIR"
        )
    return values


def save_model(directory: str | os.PathLike, params: Params, config: InternVLConfig, processor: Processor) -> None:
    """Writes a model directory: all of it appears under its name, or nothing does.

    Args:
      directory: the folder to make; it must not exist, unless empty.
      params: the parameters with stacked layers, of any dtype.
      config, processor: those of the model.

    Raises:
      InputError: see `whole_folder`; parameters don't fit the config, or the disk is full.
    """
    directory = pathlib.Path(directory)
    specs = _specs(config)
    if wrong := sorted(path for path in specs.keys() | params.keys() if not _fits(params, specs, path)):
        raise InputError(f"can't save {directory}: {', '.join(wrong[:5])} are not as the config has them; give both")
    _check_match(directory, config, processor)
    with whole_folder(directory) as partial:
        write_params(partial / "params", params)
        processor.tokenizer.save(partial)
        values: dict[str, Any] = {"format": FORMAT, "model": config.to_dict(), "processor": processor.to_dict()}
        (partial / "config.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _specs(config: InternVLConfig) -> dict[str, ParamSpec]:
    return structure(PARTS["all"], config, Runtime())[1]


def _fits(params: Params, specs: dict[str, ParamSpec], path: str) -> bool:
    return path in params and path in specs and tuple(params[path].shape) == specs[path].shape


def _check_match(directory: pathlib.Path, config: InternVLConfig, processor: Processor) -> None:
    pairs = {
        "the id of <IMG_CONTEXT>": (config.image_token_id, processor.tokenizer.image_context),
        "tokens of a tile": (config.tokens_per_tile, processor.image_config.tokens_per_tile),
        "pixels of a tile's side": (config.vision.image_size, processor.image_config.tile_size),
    }
    for what, (model, files) in pairs.items():
        if model != files:
            raise InputError(
                f"{directory}: {what} is {model} in the model and {files} in the processor; use one model's files"
            )
