"""Training: one loop for all stages; a stage is an objective and a batch type."""

from internvl_jax.training.config import (
    ConsistencyConfig,
    DataConfig,
    Group,
    GspoConfig,
    MpoConfig,
    OptimConfig,
    RouterConfig,
    RunConfig,
    TrainConfig,
)
from internvl_jax.training.run.loop import train
from internvl_jax.training.run.program import build

__all__ = [
    "ConsistencyConfig",
    "DataConfig",
    "Group",
    "GspoConfig",
    "MpoConfig",
    "OptimConfig",
    "RouterConfig",
    "RunConfig",
    "TrainConfig",
    "build",
    "train",
]
