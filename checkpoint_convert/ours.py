"""Model directories and workdirs of this project as readers of slices, with or without adapters."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from checkpoint_convert.account import refuse
from checkpoint_convert.adapters import Adapter, MergedReader
from checkpoint_convert.reader import Index, OrbaxReader, Reader
from checkpoint_convert.structures import specs_of
from internvl_jax.models import InternVLConfig, VisionConfig, plain_path
from internvl_jax.sharding import follow, params_io
from internvl_jax.validation import build, read_json


@dataclasses.dataclass(frozen=True)
class OurCheckpoint:
    """Attributes:
    config: of the model without adapter, or of a vision tower alone.
    reader: of its parameters, the adapter merged in; beside quantised weights of those that are stored.
    adapter: the adapter; None where there is none.
    base: the directory of the base that it is stored without; None where there is none.
    """

    config: InternVLConfig | VisionConfig
    reader: Reader
    adapter: Adapter | None = None
    base: pathlib.Path | None = None


def open_ours(directory: pathlib.Path, values: Mapping[str, Any]) -> OurCheckpoint:
    """A checkpoint of this project.

    Args:
      values: its config.json.

    Raises:
      InputError: it is broken, has not exactly the parameters of its config, or its base is not there.
    """
    if "vision" in values:
        tower = build(VisionConfig, values["vision"], "vision of config.json")
        return OurCheckpoint(tower, _account(directory, OrbaxReader(params_io.locate(directory)), specs_of(tower)))
    config, stored = InternVLConfig.from_dict(values.get("model")), OrbaxReader(params_io.locate(directory))
    specs = specs_of(config)
    base = None if values.get("base") is None else follow(values["base"], directory / "config.json")
    if config.lora is None:
        return OurCheckpoint(config, _account(directory, stored, specs))
    beneath = None if base is None else open_ours(base, read_json(base / "config.json")).reader
    here = _account(directory, stored, specs, partly=base is not None)
    places = {name: (here, path) for path in here.specs if (name := plain_path(path)) is not None}
    if beneath is not None:
        places = {path: (beneath, path) for path in beneath.specs} | places
    plain = dataclasses.replace(config, lora=None)
    whole = lambda path: here.read(path, tuple(slice(None) for _ in here.specs[path].shape))
    own = [path for path in specs if plain_path(path) is None or path in config.lora.whole]
    refuse(directory, {"missing": [path for path in own if path not in here.specs]})
    adapter = Adapter(config.lora, {path: np.asarray(whole(path)) for path in own})
    refuse(directory, {"not finite": adapter.not_finite})
    if config.quantised is not None:  # whoever converts it takes the adapter alone
        return OurCheckpoint(plain, here, adapter, base)
    joined = _account(directory, JoinedReader(places), specs_of(plain))
    return OurCheckpoint(plain, MergedReader(joined, adapter), adapter, base)


class JoinedReader:
    """Parameters of several readers as those of one.

    Args:
      places: path -> reader, and the path there.
    """

    def __init__(self, places: Mapping[str, tuple[Reader, str]]):
        self._places = places
        self.specs = {path: reader.specs[there] for path, (reader, there) in places.items()}
        self.num_tensors = len(places)
        self.nbytes = sum(spec.size * spec.dtype.itemsize for spec in self.specs.values())

    def read(self, path: str, index: Index) -> np.ndarray:
        reader, there = self._places[path]
        return reader.read(there, index)

    def not_finite(self, path: str, index: Index) -> list[str]:
        reader, there = self._places[path]
        return reader.not_finite(there, index)


def _account(directory: pathlib.Path, reader: Any, wanted: Mapping[str, Any], partly: bool = False) -> Any:
    """The reader, if it has the parameters that are wanted (or some) and no others."""
    found: Mapping[str, jax.ShapeDtypeStruct] = reader.specs
    refuse(
        directory,
        {
            "missing": [] if partly else sorted(wanted.keys() - found.keys()),
            "not expected": sorted(found.keys() - wanted.keys()),
            "of another shape": [
                f"{path}: {list(spec.shape)} instead of {list(wanted[path].shape)}"
                for path, spec in found.items()
                if path in wanted and tuple(spec.shape) != tuple(wanted[path].shape)
            ],
        },
    )
    return reader
