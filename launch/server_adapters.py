"""Flags of adapters that requests may name beside the model."""

import pathlib
import signal

from absl import app, flags

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


def check(role: str) -> bool:
    """Whether a server of this role is to have adapters; InputError for flags that would mean nothing."""
    asked = bool(_ADAPTERS.value) or _FOLDER.value is not None
    if asked and role == "vision":
        raise InputError("adapters are the language servers'; leave out --adapter and --adapter_folder")
    if not asked and (_COUNT.value, _RANK.value) != (None, None):
        raise InputError("--max_adapters and --max_adapter_rank need --adapter or --adapter_folder")
    return asked


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
    """How many the model has room for, of which rank; None: it has none. InputError for one that can't be read."""
    if not check("all"):
        return None
    found = [read_adapter(directory, checkpoint.model_config()) for directory in sources().find().values()]
    least = AdapterPlaces(*((1, 1) if _FOLDER.value is None else (8, 16)))
    count, rank = len(found), max([0, *(weight.rank for adapter in found for weight in adapter.lora.weights)])
    room = AdapterPlaces(_COUNT.value or max(least.count, count), _RANK.value or max(least.rank, rank))
    if room.count < count or room.rank < rank:
        raise InputError(f"there are {count} adapters of rank {rank}; raise --max_adapters or --max_adapter_rank")
    return room


def _outlive_hangups() -> None:
    # However early: the folder is looked at later. SIG_IGN would be inherited by what is started.
    if _FOLDER.value is not None:
        signal.signal(signal.SIGHUP, lambda *_: None)


app.call_after_init(_outlive_hangups)  # in all processes of a pod, before they find each other
