"""Training data made by a model: sampled responses and preference pairs."""

from internvl_jax.making import pairs
from internvl_jax.making.pairs import make_pairs
from internvl_jax.making.responses import METHODS, PairConfig, assist

__all__ = [
    "METHODS",
    "PairConfig",
    "assist",
    "make_pairs",
    "pairs",
]
