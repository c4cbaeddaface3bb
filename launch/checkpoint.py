"""--checkpoint and --dtype of the launchers that answer questions."""

import functools
import os
import pathlib
from typing import Any

import jax
from absl import flags

import internvl_jax as ivl
from checkpoint_convert import load_released, read_model_config
from internvl_jax import compilation_cache
from internvl_jax.data import Processor
from internvl_jax.inference import saying
from internvl_jax.models import InternVLConfig, PartName
from internvl_jax.validation import read_json
from launch import caching, hub, meshes, needs, skipping

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "model directory, training workdir (its last step), or released safetensors directory"
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16", "float16"], "auto: float32 on CPU, else bfloat16"
)
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "folder of compiled programs; by default $JAX_COMPILATION_CACHE_DIR or ~/.cache/internvl_jax; empty: keep none",
)
needs.checkpoint()

_ADVICE = "give --checkpoint the directory of a model, of a training run, or of a released checkpoint"
_USERS_CACHE = os.environ.get("XDG_CACHE_HOME") or "~/.cache"


def model_config() -> InternVLConfig:
    """The config of the model that --checkpoint names, without loading it.

    Raises:
      InputError: there is no model.
    """
    return read_model_config(directory())


def load(part: PartName = "all", folder: pathlib.Path | None = None) -> tuple[Any, Processor]:
    """The model, or that half of it, and the processor that --checkpoint names, or of another folder.

    Raises:
      InputError: there is no model, or a flag is of its other half.
    """
    eight_bits = caching.eight_bits(part) if folder is None else (None, None)  # a critic is not who they are asked of
    folder, dtype = folder or directory(), _DTYPE.value
    default = jax.config.jax_compilation_cache_dir or pathlib.Path(_USERS_CACHE, "internvl_jax").expanduser()
    if cache := default if _CACHE.value is None else _CACHE.value:
        compilation_cache.keep_programs(cache)
    if dtype == "auto":
        # bfloat16 decodes no faster than float32 on CPU (2026-11, jax 0.10.2).
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    ours, mesh = "format" in read_json(folder / "config.json", _ADVICE), meshes.mesh(read_model_config(folder).text)
    read: Any = ivl.load if ours else load_released
    with saying(f"loading {folder}"):
        return read(folder, dtype, mesh, meshes.RULES.value, part, *eight_bits, skipping.BLOCKS.value)


@functools.cache
def directory() -> pathlib.Path:
    """Where --checkpoint lies on this machine."""
    return hub.directory(_CHECKPOINT.value)
