"""The load-balancing term that every objective of a mixture of experts has besides its own."""

from typing import Any

import jax
import jax.numpy as jnp

from internvl_jax.losses import LossSum, load_balancing
from internvl_jax.training.stages.terms import Sums


class NoBalance:
    """The term of dense models: there is none."""

    collect: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.coefficients: dict[str, float] = {}

    def weights(self, batch: Any) -> dict[str, jax.Array]:
        return {}

    def terms(self, aux: dict[str, Any], batch: Any) -> tuple[dict[str, LossSum], Sums]:
        return {}, {}

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        return {}


class Balance:
    """Balances the use of experts row by row; padding does not count.

    Args:
      coefficient: the term's factor in the loss.
    """

    collect = ("load",)

    def __init__(self, coefficient: float):
        self.coefficients = {"balance": coefficient}

    def weights(self, batch: Any) -> dict[str, jax.Array]:
        return {"balance": jnp.sum(jnp.any(batch.segments_BT > 0, axis=1)).astype(jnp.float32)}

    def terms(self, aux: dict[str, Any], batch: Any) -> tuple[dict[str, LossSum], Sums]:
        """Args:
        aux: what the model's pass over the rows gave besides, with `collect`.
        """
        choices_LBE, probabilities_LBE = aux["load"]
        balance = load_balancing(choices_LBE, probabilities_LBE, jnp.sum(batch.segments_BT > 0, axis=1))
        return {"balance": balance}, {"choices_LE": jnp.sum(choices_LBE, axis=1)}

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """`expert_load`: tokens of the busiest expert of any layer, as a multiple of an even share."""
        choices_LE = sums["choices_LE"]
        mean_L1 = jnp.maximum(jnp.mean(choices_LE, axis=1, keepdims=True), 1e-9)
        return {"expert_load": jnp.max(choices_LE / mean_L1)}
