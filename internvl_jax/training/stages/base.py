"""What a stage is: one record of everything that tells it from the others. `registry` has them all."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from internvl_jax.data import PipelineConfig, Processor, RowConfig
from internvl_jax.models import InternVLConfig
from internvl_jax.training.config import DataConfig, RunConfig, StageConfig
from internvl_jax.training.run.program import Program
from internvl_jax.training.run.state import TrainState
from internvl_jax.training.stages.balance import Balance, NoBalance
from internvl_jax.training.stages.terms import Objective


class Source(Protocol):
    """A host's part of the global batches of a run, in an order that a position describes.

    Attributes:
      digest: of the data and its order; the same on every host.
    """

    digest: str

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


@dataclasses.dataclass(frozen=True)
class SourceParts:
    """What a source is made of besides the settings of its stage.

    Attributes:
      pipeline: what is read and how it is laid out in rows.
      run: how many rows a step takes, where the run writes.
      reference: the model directory or workdir of the frozen reference.
      program: the compiled side, for sources that read texts with the model.
      processor: turns samples into tokens and tiles.
    """

    pipeline: PipelineConfig
    run: RunConfig
    reference: str
    program: Program
    processor: Processor


class Start(enum.Enum):
    """The least that a run may start from; what this lacks begins with random values."""

    NOTHING = enum.auto()
    BASE = enum.auto()  # a model that lacks what a Flash model has besides
    MODEL = enum.auto()


def accept(settings: Any, model: InternVLConfig, data: DataConfig, run: RunConfig) -> None:
    """The check of a stage that has nothing to check."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of training.

    Attributes:
      name: `objective` in the config of a run.
      start: the least that a run may start from.
      objective: makes the objective from the stage's settings, the load-balancing term and `run.logprob_chunk`.
      source: makes the source from the stage's settings and everything else; the data is checked there.
      empty_row: makes a batch of one row (B = 1) with nothing in it from the stage's settings, the model and the sizes
        of a row: what shapes a step takes, for planning.
      settings: the class of `config.stage`; None for a stage that has no settings.
      check: raises InputError for settings that no run of this model, data and run can have.
      free: the settings that may differ when a run is resumed: they change neither parameters nor the data's order.
      refers: whether every step needs the frozen reference model.
      samples: whether making a batch is sampling from the model: no time that devices wait.
      columns: the metrics to show besides those of every stage.
      summary: makes lines about what the settings come to, from them and the number of steps.
    """

    name: str
    start: Start
    objective: Callable[[Any, Balance | NoBalance, int], Objective]
    source: Callable[[Any, SourceParts], Source]
    empty_row: Callable[[Any, InternVLConfig, RowConfig], NamedTuple]
    settings: type[StageConfig] | None = None
    check: Callable[[Any, InternVLConfig, DataConfig, RunConfig], None] = accept
    free: frozenset[str] = frozenset()
    refers: bool = False
    samples: bool = False
    columns: tuple[str, ...] = ()
    summary: Callable[[Any, int], Sequence[str]] = lambda settings, steps: ()
