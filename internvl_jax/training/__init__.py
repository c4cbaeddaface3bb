"""Training: one loop for all stages; a stage is an objective and a batch type."""

from internvl_jax.training.config import DataConfig, Group, OptimConfig, RunConfig, TrainConfig
from internvl_jax.training.loop import build, train

__all__ = ["DataConfig", "Group", "OptimConfig", "RunConfig", "TrainConfig", "build", "train"]
