"""Flags of adapters that requests may name beside the model."""

import pathlib

from absl import flags

from checkpoint_convert import read_adapter
from internvl_jax.errors import InputError
from internvl_jax.models import AdapterPlaces
from internvl_jax.serving import AdapterSources
from launch import checkpoint

_ADAPTERS = flags.DEFINE_multi_string(
    "adapter", [], "NAME=DIR, a PEFT adapter that requests ask for by its name as `model`; may be given several times"
)
_FOLDER = flags.DEFINE_string(
    "adapter_folder", None, "folder of PEFT adapters, each in one of its name; looked at again at SIGHUP"
)
_COUNT = flags.DEFINE_integer(
    "max_adapters", None, "adapters at a time; default: as many as there are, or 8 with --adapter_folder", 1
)
_RANK = flags.DEFINE_integer(
    "max_adapter_rank", None, "largest rank; default: of those that there are, or 16 with --adapter_folder", 1
)


def sources() -> AdapterSources:
    """Where adapters come from; InputError for names and folders that can't be."""
    given: dict[str, pathlib.Path] = {}
    for text in _ADAPTERS.value:
        name, equals, directory = text.partition("=")
        if not equals or name in given:
            raise InputError(f"--adapter={text}: give NAME=DIR, every name once")
        given[name] = pathlib.Path(directory)
    return AdapterSources(given, None if _FOLDER.value is None else pathlib.Path(_FOLDER.value))


def places() -> AdapterPlaces | None:
    """How many the model has room for, and of which rank; None: it has no adapters.

    Raises:
      InputError: an adapter that there is can't be read.
    """
    if not _ADAPTERS.value and _FOLDER.value is None:
        return None
    found = [read_adapter(directory, checkpoint.model_config()) for directory in sources().find().values()]
    ranks = [weight.rank for adapter in found for weight in adapter.lora.weights]
    least = (1, 1) if _FOLDER.value is None else (8, 16)
    count, rank = max(least[0], len(found)), max([least[1], *ranks])
    return AdapterPlaces(_COUNT.value or count, _RANK.value or rank)
