"""Parameters of a model directory or workdir that may have an adapter: with it, or merged; quantised, or as stored.

A directory with an adapter holds all parameters of the adapted model, or those of the adapter alone: its config.json
then names its base (`base`, see `sharding.referred`), another such directory.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from internvl_jax.errors import InputError
from internvl_jax.models.config import InternVLConfig
from internvl_jax.models.internvl import PARTS
from internvl_jax.models.stack import Runtime
from internvl_jax.models.transforms.lora import merged
from internvl_jax.models.transforms.lora_config import plain_path
from internvl_jax.models.transforms.quantised_names import quantised_as, weight_path
from internvl_jax.models.transforms.quantised_weights import as_wanted
from internvl_jax.sharding import Params, everywhere, follow, locate, read_params, read_specs, structure
from internvl_jax.validation import read_json

Structs = Mapping[str, jax.ShapeDtypeStruct]


def read_stored(directory: str | os.PathLike, wanted: Structs) -> Params:
    """The parameters of the model that a directory holds, with its adapter if it has one.

    Args:
      wanted: all of them with shape, dtype and sharding; one without a sharding must be there and is not read.

    Raises:
      InputError: see `read_params` and `follow`.
    """
    directory = pathlib.Path(directory)
    base = read_json(directory / "config.json").get("base")
    if base is None:
        return _read(directory, wanted)
    there = read_specs(locate(directory)).keys()
    own = {path for path in wanted if path in there or weight_path(path) in there}  # what it has whole may be quantised
    if lacking := sorted(path for path in wanted if plain_path(path) is None and path not in own):
        raise InputError(f"{directory} lacks {lacking[0]} of its adapter; restore the checkpoint")
    params = _read(directory, {path: struct for path, struct in wanted.items() if path in own})
    rest = {plain_path(path): struct for path, struct in wanted.items() if path not in own}
    found = read_plain(follow(base, directory / "config.json"), rest, partly=True)
    return params | {path: found[plain_path(path)] for path in wanted if plain_path(path) in found and path not in own}


def read_plain(directory: str | os.PathLike, wanted: Structs, ignore: str = "$^", partly: bool = False) -> Params:
    """The parameters of the model that a directory holds, merged if it has an adapter.

    Args:
      wanted: parameters without adapter; one without a sharding must be there and is not read.
      ignore: see `read_params`.
      partly: the model may have others, too, which are not read.

    Raises:
      InputError: see `read_stored`.
    """
    directory = pathlib.Path(directory)
    config = InternVLConfig.from_dict(read_json(directory / "config.json").get("model"))
    stored = config.quantised
    if (how := quantised_as(wanted)) is not None:
        config = dataclasses.replace(config, quantised=how)
    specs = _specs(dataclasses.replace(config, lora=None))
    if partly:
        others = {path: spec for path, spec in specs.items() if path not in wanted}
        wanted = {**wanted, **{path: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for path, spec in others.items()}}
    if config.lora is None:
        return _read(directory, wanted, ignore)
    if config.quantised is not None and stored is None:
        raise InputError(
            f"{directory} has an adapter, and weights are to be quantised with it merged; merge it first "
            "(launch.convert --to=orbax)"
        )
    if config.quantised is not None:
        raise InputError(
            f"{directory} has an adapter beside quantised weights, which can't be merged; write the adapter alone "
            "(launch.convert --to=peft) and merge it into the base (--src=BASE --adapter=DIR)"
        )
    if strange := sorted(wanted.keys() - specs.keys()):
        raise InputError(f"{directory} does not fit the model: {strange[0]} is missing; give the model's own config")
    adapted: dict[str, jax.ShapeDtypeStruct] = {}
    for path, spec in _specs(config).items():
        plain = plain_path(path)
        of = plain or path.rpartition(".")[0]  # what of an adapter belongs to a weight that is read
        given = wanted.get(of)
        read = given is not None and given.sharding is not None
        if plain is not None:
            adapted[path] = given if read else jax.ShapeDtypeStruct(spec.shape, spec.dtype)
            continue
        # Small, and so whole on every device.
        place = everywhere(given.sharding) if read else None
        adapted[path] = jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=place)
    params = merged(read_stored(directory, adapted), config)
    return {path: jax.device_put(value, wanted[path].sharding) for path, value in params.items()}


def _read(directory: pathlib.Path, wanted: Structs, ignore: str = "$^") -> Params:
    """See `read_params`; weights that are wanted quantised may be stored so or not."""
    return read_params(locate(directory), wanted, ignore, functools.partial(as_wanted, directory, wanted))


def _specs(config: InternVLConfig) -> dict[str, Any]:
    return structure(PARTS["all"], config, Runtime())[1]
