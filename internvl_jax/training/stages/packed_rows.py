"""Where a stage's batches come from: packed rows of a data set, with what the objective needs besides."""

from typing import Any, Protocol

import jax

from internvl_jax.data.processor import Processor
from internvl_jax.data.rows.pipeline import Pipeline
from internvl_jax.data.rows.views import Layout, Plain, Probes, Rates
from internvl_jax.training.config import TrainConfig
from internvl_jax.training.run import setup
from internvl_jax.training.run.program import Program
from internvl_jax.training.run.state import TrainState
from internvl_jax.training.stages.gspo.rollouts import Rollouts
from internvl_jax.training.stages.preference_rows import PreferenceRows


class Source(Protocol):
    """A host's part of the global batches of a run, in an order that a position describes."""

    def start(self, position: Any) -> None:
        """Goes to a position; None is the beginning."""
        ...

    def take(self, state: TrainState) -> Any:
        """The next batch, numpy; `state` is the one that it will change."""
        ...

    def notes(self) -> dict[str, float]:
        """What is known of the last batch on the host, for the metrics; 'skipped' counts samples that could not be used
        so far.
        """
        ...

    def position(self) -> Any:
        """After the last batch taken, JSON-able and the same on every host."""
        ...

    def close(self) -> None:
        """Ends worker processes."""
        ...


class PackedRows:
    """Conversations.

    Args:
      layout: what a row holds of them.
    """

    def __init__(self, config: TrainConfig, processor: Processor, layout: Layout):
        self._rows = config.run.rows
        self._pipeline = Pipeline(setup.pipeline_config(config), processor, layout)
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


def open_source(config: TrainConfig, program: Program, processor: Processor) -> Source:
    """The source of a stage; its data is checked here.

    Raises:
      InputError: data that can't be read.
    """
    compressed, stage = config.model.tokens_per_compressed_tile, config.stage
    return {
        "ntp": lambda: PackedRows(config, processor, Plain()),
        "consistency": lambda: PackedRows(config, processor, Rates(compressed, config.stage.rates)),
        "router": lambda: PackedRows(config, processor, Probes(compressed, stage.probe, stage.probes)),
        "gspo": lambda: Rollouts(config, program, processor),
        "mpo": lambda: PreferenceRows(config, program, processor),
    }[config.objective]()
