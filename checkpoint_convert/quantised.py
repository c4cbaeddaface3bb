"""A checkpoint with quantised weights, which become so as they are read; and these under the names of the release."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from checkpoint_convert.hf_config import language_model
from checkpoint_convert.reader import Index, Reader
from checkpoint_convert.rows import to_released
from checkpoint_convert.tables import TABLES
from internvl_jax.models import InternVL, quantised_slices, weight_path
from internvl_jax.sharding import ParamSpec, flatten


class QuantisedReader:
    """A reader of a checkpoint with quantised weights; scales and rounding are of the values as they are stored.

    Args:
      reader: of the checkpoint as it is.
      wanted: the parameters of the quantised model.
    """

    def __init__(self, reader: Reader, wanted: Mapping[str, ParamSpec]):
        self._reader, self._wanted = reader, wanted
        plain = {path: weight_path(path) for path in wanted}
        new = {path: jax.ShapeDtypeStruct(wanted[path].shape, wanted[path].dtype) for path in wanted if plain[path]}
        self.specs = {path: new[path] if plain[path] else reader.specs[path] for path in wanted}
        self.num_tensors, self.nbytes = reader.num_tensors, reader.nbytes

    def read(self, path: str, index: Index) -> np.ndarray:
        weight = weight_path(path)
        if weight is None:
            return self._reader.read(path, index)
        read = lambda rows: self._reader.read(weight, rows)
        return quantised_slices(path, self._wanted, read, self._reader.specs[weight].shape).read(index)

    def not_finite(self, path: str, index: Index) -> list[str]:
        weight = weight_path(path)
        if weight is None:
            return self._reader.not_finite(path, index)
        slices = quantised_slices(path, self._wanted, lambda _: np.empty(0), self._reader.specs[weight].shape)
        rows = index[: len(slices.rows)]
        return self._reader.not_finite(weight, (*rows, *(slice(None),) * slices.num_inputs))


def quantised_tensors(model: InternVL, form: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Names, integers `[out, in]` and scales `[out]` of the quantised weights, as a released format has weights."""
    rows = TABLES[form, language_model(model.config.text)].rows
    found = {path: np.asarray(value) for path, value in flatten(model).items() if weight_path(path) is not None}
    values = {str(weight_path(path)): value for path, value in found.items() if value.dtype == np.int8}
    scales = {str(weight_path(path)): value for path, value in found.items() if value.dtype != np.int8}
    # Rows know where whole weights go: a scale stands in all of its row.
    shaped = {
        path: scale.reshape(*scale.shape, *(1,) * (values[path].ndim - scale.ndim)) for path, scale in scales.items()
    }
    spread = {path: np.broadcast_to(scale, values[path].shape) for path, scale in shaped.items()}
    for (name, value), (_, scale) in zip(to_released(rows, values), to_released(rows, spread), strict=True):
        yield name, value, scale[:, 0]
