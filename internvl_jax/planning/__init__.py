"""Planning: compile a config's real programs for a slice that is not attached, and read what they need."""

from internvl_jax.planning import table
from internvl_jax.planning.lowering import Serving
from internvl_jax.planning.plan import plan

__all__ = [
    "Serving",
    "plan",
    "table",
]
