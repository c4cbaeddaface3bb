"""Training: one loop for all stages; a stage is an objective and a batch type."""

from internvl_jax.training.config import (
    DataConfig,
    Group,
    LoraGroup,
    LoraSettings,
    OptimConfig,
    RunConfig,
    StageConfig,
    TrainConfig,
)
from internvl_jax.training.run import hooks
from internvl_jax.training.run.adapting import trained_params, with_adapter
from internvl_jax.training.run.loop import train
from internvl_jax.training.run.setup import build
from internvl_jax.training.run.watch import Watching
from internvl_jax.training.stages.gspo.objective import RolloutBatch
from internvl_jax.training.stages.gspo.sampling_weights import (
    prompts_ahead,
    resharder,
    sampling_ladders,
    sampling_memory,
    sampling_place,
)
from internvl_jax.training.stages.gspo.settings import GspoConfig
from internvl_jax.training.stages.mpo import MpoConfig
from internvl_jax.training.stages.preference_rows import Pairs
from internvl_jax.training.stages.registry import STAGES
from internvl_jax.training.stages.vico import ConsistencyConfig, RouterConfig

__all__ = [
    "ConsistencyConfig",
    "DataConfig",
    "Group",
    "GspoConfig",
    "LoraGroup",
    "LoraSettings",
    "MpoConfig",
    "OptimConfig",
    "Pairs",
    "RolloutBatch",
    "RouterConfig",
    "RunConfig",
    "STAGES",
    "StageConfig",
    "TrainConfig",
    "Watching",
    "build",
    "hooks",
    "prompts_ahead",
    "resharder",
    "sampling_ladders",
    "sampling_memory",
    "sampling_place",
    "train",
    "trained_params",
    "with_adapter",
]
