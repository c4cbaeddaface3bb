"""Losses: pure functions of arrays that return a sum and a weight; the training step divides once."""

from internvl_jax.losses import gspo, mpo, vico
from internvl_jax.losses.load_balancing import load_balancing
from internvl_jax.losses.loss_sum import LossSum
from internvl_jax.losses.ntp import next_token
from internvl_jax.losses.sequences import segment_sums, spread

__all__ = [
    "LossSum",
    "gspo",
    "load_balancing",
    "mpo",
    "next_token",
    "segment_sums",
    "spread",
    "vico",
]
