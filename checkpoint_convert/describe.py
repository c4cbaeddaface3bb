"""What a checkpoint holds, from config.json, the headers of its files and its tokenizer: no weight is read but those of
an adapter that lies among them.
"""

import collections
import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from checkpoint_convert.account import match
from checkpoint_convert.hf_config import UNKNOWN_TOKEN, read_config
from checkpoint_convert.peft_reader import wrapped_adapter
from checkpoint_convert.released import load_processor, released_table
from checkpoint_convert.side_files import has_tokenizer
from checkpoint_convert.source import open_directory
from checkpoint_convert.structures import specs_of
from checkpoint_convert.wrapped import split
from internvl_jax.data import Processor
from internvl_jax.models import InternVLConfig, LoraConfig, VisionConfig, weight_path
from internvl_jax.sharding import params_io
from internvl_jax.validation import build, read_json

_STAGE = re.compile(r"(?i)-(pretrained|instruct|mpo)(?:-hf)?$")


def describe(directory: str | pathlib.Path, sizes: Mapping[str, InternVLConfig]) -> dict[str, Any]:
    """Describes a released checkpoint, a model directory of this project or a training workdir.

    Names and shapes of all tensors are checked against config.json on the way.

    Args:
      directory: the checkpoint's.
      sizes: the published sizes, to name the one that this is.

    Returns:
      format ('github', 'hf', 'vit' for a tower alone, 'orbax'), family, size (None where none fits), stage (as the
      directory's name says, else None), parameters, bytes, dtypes {name: parameters}, tied_embeddings, tokens_per_tile,
      flash {tokens_per_compressed_tile, relative_threshold, absolute_threshold} (None but for Flash models),
      tiles [least, most] of a picture, template, special_tokens {string: id}, adapter {base, ranks, alphas, weights,
      whole} (None where there is none; where its base lies elsewhere, parameters, bytes and dtypes are its own;
      where it lies within a released checkpoint, those of the model without it). What a directory doesn't say is None.

    Raises:
      InputError: see `read_config`, `open_directory`, `account.match` and `params_io.read_specs`.
    """
    directory = pathlib.Path(directory)
    values, packed = read_json(directory / "config.json", "give the directory of a model"), 0
    if "format" in values:
        form, tensors = "orbax", params_io.read_specs(params_io.locate(directory))
        processor = Processor.from_dict(values["processor"], directory) if values.get("processor") else None
        if "vision" in values:
            config: InternVLConfig | VisionConfig = build(VisionConfig, values["vision"], "vision of config.json")
        else:
            config = InternVLConfig.from_dict(values.get("model"))
            whole = specs_of(dataclasses.replace(config, quantised=None))
            packed = sum(math.prod(whole[str(weight_path(path))].shape) for path in tensors if path.endswith(".mxfp4"))
    else:
        released, stored = read_config(directory), open_directory(directory)
        form, processor = released.format, load_processor(directory) if has_tokenizer(directory) else None
        token = UNKNOWN_TOKEN if form == "github" else None
        config = released.vision() if form == "vit" else released.model(token)
        tensors = split(stored)[0]
        leaves = match(directory, tensors, released_table(released), specs_of(config))
        packed = sum(math.prod(leaf.shape) for leaf in leaves if leaf.row.in_bytes)
        if isinstance(config, InternVLConfig) and (adapter := wrapped_adapter(directory, config)) is not None:
            config = dataclasses.replace(config, lora=adapter.lora)
    stage = _STAGE.search(directory.resolve().name)
    return {
        "format": form,
        **_architecture(config, sizes),
        "stage": stage.group(1).lower() if stage else None,
        **_count(tensors, packed),
        "template": processor.template.name if processor else None,
        "tiles": [processor.image_config.min_tiles, processor.image_config.max_tiles] if processor else None,
        "special_tokens": processor.tokenizer.added_tokens if processor else None,
        "adapter": None if isinstance(config, VisionConfig) else _adapter(config.lora, values.get("base")),
    }


def _adapter(lora: LoraConfig | None, base: Any) -> dict[str, Any] | None:
    if lora is None:
        return None
    numbers = lambda layers: [number for layer in layers for number in layer]
    said = [pair for each in lora.weights for pair in zip(numbers(each.ranks), numbers(each.alphas), strict=True)]
    return {
        "base": base and base["path"],
        "ranks": sorted({rank for rank, _ in said if rank}),
        "alphas": sorted({alpha for rank, alpha in said if rank}),
        "weights": [weight.path for weight in lora.weights],
        "whole": list(lora.whole),
    }


def _architecture(config: InternVLConfig | VisionConfig, sizes: Mapping[str, InternVLConfig]) -> dict[str, Any]:
    if isinstance(config, VisionConfig):
        return {"family": "intern_vit", "size": None, "tied_embeddings": None, "tokens_per_tile": None, "flash": None}
    family = config.text.family if config.text.moe is None else f"{config.text.family}_moe"
    size = next((name for name, size in sizes.items() if _shape(size) == _shape(config)), None)
    flash = config.flash and {
        "tokens_per_compressed_tile": config.tokens_per_compressed_tile,
        "relative_threshold": config.flash.relative_threshold,
        "absolute_threshold": config.flash.absolute_threshold,
    }
    return {
        "family": family,
        "size": size,
        "tied_embeddings": config.text.tie_embeddings,
        "tokens_per_tile": config.tokens_per_tile,
        "flash": flash,
    }


def _shape(config: InternVLConfig) -> InternVLConfig:
    """The config without what checkpoints of one size differ in."""
    vision = dataclasses.replace(config.vision, drop_path=0.0, layer_scale_init=0.0, init_std=0.0)
    text = dataclasses.replace(config.text, tie_embeddings=False, init_std=0.0)
    flash = config.flash and dataclasses.replace(config.flash, relative_threshold=0.0, absolute_threshold=0.0)
    config = dataclasses.replace(config, image_token_id=UNKNOWN_TOKEN, lora=None, quantised=None)
    return dataclasses.replace(config, vision=vision, text=text, flash=flash)


def _count(tensors: Mapping[str, Any], packed: int) -> dict[str, Any]:
    """Parameters by dtype; `tensors` have a shape and a dtype, those in bytes hold `packed` parameters. Scales of
    integers are none.
    """
    dtypes, size = collections.Counter({"mxfp4": packed} if packed else {}), 0
    for name, tensor in tensors.items():
        count = math.prod(tensor.shape)
        size += count * tensor.dtype.itemsize
        if tensor.dtype.name != "uint8" and not name.endswith(".int8_scale"):
            dtypes[tensor.dtype.name] += count
    return {"parameters": dtypes.total(), "bytes": size, "dtypes": dict(dtypes)}
