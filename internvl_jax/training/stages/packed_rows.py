"""Batches of conversations: packed rows of a data set."""

from typing import Any

import jax

from internvl_jax.data import Pipeline, RowLayout
from internvl_jax.training.run.state import TrainState
from internvl_jax.training.stages.base import SourceParts


class PackedRows:
    """See `base.Source`.

    Args:
      layout: what a row holds of the conversations.
    """

    def __init__(self, parts: SourceParts, layout: RowLayout):
        self._rows = parts.run.rows
        self._pipeline = Pipeline(parts.pipeline, parts.processor, layout)
        self.digest = self._pipeline.fingerprint
        self._batches: Any = None

    def start(self, position: Any) -> None:
        host, hosts = jax.process_index(), jax.process_count()
        self._batches = self._pipeline.batches(self._rows, host=host, hosts=hosts, state=position)

    def take(self, state: TrainState) -> Any:
        return next(self._batches)

    def position(self) -> Any:
        return self._batches.state()

    def notes(self) -> dict[str, float]:
        return {"skipped": self._batches.skipped}

    def close(self) -> None:
        self._batches.close()
