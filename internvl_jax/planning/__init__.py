"""Planning: compile a config's real programs for a slice that is not attached, and read what they need."""

from internvl_jax.planning.plan import plan
from internvl_jax.planning.programs import Serving

__all__ = ["Serving", "plan"]
