"""Planning: compile a config's real programs for a slice that is not attached, and read what they need."""

from internvl_jax.planning import table
from internvl_jax.planning.layouts import Serving
from internvl_jax.planning.plan import TASKS, plan

__all__ = [
    "Serving",
    "TASKS",
    "plan",
    "table",
]
