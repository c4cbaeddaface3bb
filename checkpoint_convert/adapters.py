"""An adapter beside a checkpoint: as parameters of an adapted model, or merged into what is read of the checkpoint."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from checkpoint_convert.reader import Index, Reader
from internvl_jax.errors import InputError
from internvl_jax.models import LoraConfig, difference, plain_path, stored_dtype, weight_path
from internvl_jax.sharding import Params
from internvl_jax.validation import all_finite


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter as files hold it.

    Attributes:
      lora: what it is.
      params: the parameters that an adapted model has of it: `PATH.weight.a`, `.b`, `.scale` of every adapted weight,
        and those that it has whole; of the first two the dtype is the files'.
    """

    lora: LoraConfig
    params: Mapping[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.params.values())

    def cast(self, dtype: np.dtype) -> "Adapter":
        """In another dtype, but for scales."""
        kinds = {path: stored_dtype(path, dtype) for path in self.params}
        return Adapter(self.lora, {path: array.astype(kinds[path]) for path, array in self.params.items()})

    @property
    def not_finite(self) -> list[str]:
        """Paths of parameters that hold a NaN or an infinity."""
        return sorted(path for path, array in self.params.items() if not all_finite(array))


def check_plain(lora: LoraConfig | None) -> None:
    """Raises InputError for a base that has an adapter itself."""
    if lora is not None:
        raise InputError("the model has an adapter already; merge that first (launch.convert), or give its base")


def attached(params: Params, adapter: Adapter, where: Mapping[str, Sharding], dtype: jnp.dtype) -> Params:
    """The parameters of an adapted model, of those of the model without adapter, which become its own.

    Args:
      where: the places of all parameters of the adapted model, or of a half of it.
      dtype: of the model; scales stay float32.

    Raises:
      InputError: the adapter has a weight whole that the model has quantised.
    """
    if lost := sorted(adapter.params.keys() & {weight_path(path) for path in where}):
        raise InputError(f"the adapter has {lost[0]} whole, and the model has it quantised; leave out --quantise")
    found: Params = {}
    for path, place in where.items():
        if path in adapter.params:
            found[path] = jax.device_put(jnp.asarray(adapter.params[path]).astype(stored_dtype(path, dtype)), place)
        else:
            found[path] = params[plain_path(path)]
    return found


class MergedReader:
    """A reader of a checkpoint as it is with an adapter merged into it: sums are made in float32, and every parameter
    keeps its stored dtype.
    """

    def __init__(self, reader: Reader, adapter: Adapter):
        self._reader, self._params = reader, adapter.params
        self._weights = {f"{weight.path}.weight" for weight in adapter.lora.weights}
        self.specs, self.num_tensors, self.nbytes = reader.specs, reader.num_tensors, reader.nbytes

    def read(self, path: str, index: Index) -> np.ndarray:
        if path in self._params:
            return self._params[path][index].astype(self.specs[path].dtype)
        piece = self._reader.read(path, index)
        if path not in self._weights:
            return piece
        a, b, scale = (self._params[f"{path}.{name}"] for name in ("a", "b", "scale"))
        lead = scale.ndim - 1
        outputs = b.ndim - 1 - lead
        a = a[(*index[:lead], slice(None), *index[lead + outputs :])]
        b, scale = b[(*index[: lead + outputs], slice(None))], scale[index[:lead]]
        with jax.default_device(jax.devices("cpu")[0]):
            whole = jnp.asarray(piece).astype(jnp.float32) + difference(a, b, scale, piece.shape)
            return np.asarray(whole.astype(piece.dtype))

    def not_finite(self, path: str, index: Index) -> list[str]:
        return self._reader.not_finite(path, index)
