"""Planning: compile a config's real programs for a slice that is not attached, and read what they need."""

from internvl_jax.planning import splits_table, table
from internvl_jax.planning.assumed import Assumed
from internvl_jax.planning.chips import Topology
from internvl_jax.planning.layouts import Serving
from internvl_jax.planning.plan import TASKS, plan
from internvl_jax.planning.splits import Traffic, plan_splits, split

__all__ = [
    "Assumed",
    "Serving",
    "TASKS",
    "Topology",
    "Traffic",
    "plan",
    "plan_splits",
    "split",
    "splits_table",
    "table",
]
