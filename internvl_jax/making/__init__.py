"""Training data made by a model: sampled responses, preference pairs, and labels of steps for a critic."""

from internvl_jax.making import pairs
from internvl_jax.making.pairs import assist, make_pairs
from internvl_jax.making.responses import METHODS, PairConfig, at_blank_lines

__all__ = [
    "METHODS",
    "PairConfig",
    "assist",
    "at_blank_lines",
    "make_pairs",
    "pairs",
]
