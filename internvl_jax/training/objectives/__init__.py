"""What every stage optimises, by the name that configs give it."""

from internvl_jax.training.objectives.base import Objective
from internvl_jax.training.objectives.make import make_objective

__all__ = ["Objective", "make_objective"]
