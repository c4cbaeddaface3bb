"""Batches of conversations: packed rows of a data set."""

from typing import Any

from internvl_jax.data import Pipeline, RowLayout
from internvl_jax.training.run.state import TrainState
from internvl_jax.training.stages.base import SourceParts


class PackedRows:
    """See `base.Source`.

    Args:
      layout: what a row holds of the conversations.
      arranged: whether the rows of a step are arranged by what they cost, so that devices wait less for each other. An
        objective that takes note of their order needs them as they come.
    """

    def __init__(self, parts: SourceParts, layout: RowLayout, arranged: bool = True):
        self._rows, self._micro_batches = parts.run.rows, parts.run.micro_batches if arranged else None
        self._pipeline = Pipeline(parts.pipeline, parts.processor, layout)
        self.digest = self._pipeline.fingerprint
        self._share = parts.program.share
        self._batches: Any = None

    def start(self, position: Any) -> None:
        share = {"host": self._share.index, "hosts": self._share.count, "state": position}
        self._batches = self._pipeline.batches(self._rows, micro_batches=self._micro_batches, **share)

    def take(self, state: TrainState) -> Any:
        return next(self._batches)

    def position(self) -> Any:
        return self._batches.state()

    def notes(self) -> dict[str, float]:
        return {"skipped": self._batches.skipped}

    def close(self) -> None:
        self._batches.close()
