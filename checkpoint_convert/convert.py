"""Released checkpoints -> models in memory, or a model directory of this project.

1. config.json says which model and which table of rows.
2. The account pairs tensors with parameters, by names and shapes, and refuses anything left over.
3. Every parameter is read straight into its (sharded) array: a shard reads its slice of the mapped files only.
"""

import itertools
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from checkpoint_convert.account import Leaf, match, refuse
from checkpoint_convert.hf_config import ReleasedConfig, read_config
from checkpoint_convert.source import Tensor, open_directory
from checkpoint_convert.tables import TABLES, Table
from internvl_jax.models import InternVL, InternViT, Runtime
from internvl_jax.sharding import PRESETS, ParamSpec, Rules, abstract, bind, shardings

Params = dict[str, jax.Array]


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
      FileNotFoundError, InputError: see `read_config`, `open_directory` and `account.match`.
    """
    released = read_config(directory)
    config = released.model(image_token_id)
    return _load(released, lambda rngs: InternVL(config, rngs, _runtime(dtype)), dtype, mesh, rules)


def load_vision_tower(directory: str | pathlib.Path, dtype: str = "bfloat16") -> InternViT:
    """The vision tower of a checkpoint that holds nothing else (InternVisionModel)."""
    released = read_config(directory)
    config = released.vision()
    return _load(released, lambda rngs: InternViT(config, rngs, _runtime(dtype)), dtype, None, None)


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
      FileNotFoundError, InputError: see `open_directory` and `account.match`; or values that are not finite.
    """
    directory = pathlib.Path(directory)
    tensors = open_directory(directory)
    leaves = match(directory, tensors, table, specs)
    here = SingleDeviceSharding(jax.devices()[0])
    params: Params = {}
    not_finite: list[str] = []
    for leaf in leaves:
        sharding = here if where is None else where[leaf.row.target]
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
            done[key] = np.empty([len(bound) for bound in bounds], dtype)
            for position in itertools.product(*bounds[:lead]):
                names = leaf.names[position]
                piece = row.forwards([tensors[name].array() for name in names], leaf.shape)[index[lead:]]
                at = tuple(place - bound.start for place, bound in zip(position, bounds[:lead], strict=True))
                done[key][at] = piece
                if not _all_finite(done[key][at]):
                    not_finite.extend(name for name in names if not _all_finite(tensors[name].array()))
        return done[key]

    return read


_INFINITY_BITS = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}


def _all_finite(array: np.ndarray) -> bool:
    """Three times as fast as np.isfinite on bfloat16: a float is finite where its bits without sign are below those of
    infinity."""
    bits = array.view(f"u{array.dtype.itemsize}")
    infinity = bits.dtype.type(_INFINITY_BITS[array.dtype.name])
    sign_off = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    return bool(np.max(bits & sign_off, initial=0) < infinity)


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
    return TABLES[released.format, "qwen3"]
