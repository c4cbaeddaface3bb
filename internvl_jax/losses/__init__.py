"""Losses: pure functions of arrays that return a sum and a weight; the training step divides once."""

from internvl_jax.losses.base import LossSum
from internvl_jax.losses.load_balancing import load_balancing
from internvl_jax.losses.ntp import next_token

__all__ = ["LossSum", "load_balancing", "next_token"]
