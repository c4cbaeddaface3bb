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
      per_token: how many experts a token goes through.
    """

    collect = ("load",)

    def __init__(self, coefficient: float, per_token: int):
        self.coefficients, self.per_token = {"balance": coefficient}, per_token

    def weights(self, batch: Any) -> dict[str, jax.Array]:
        return {"balance": jnp.sum(jnp.any(batch.segments_BT > 0, axis=1)).astype(jnp.float32)}

    def terms(self, aux: dict[str, Any], batch: Any) -> tuple[dict[str, LossSum], Sums]:
        """Args:
        aux: what the model's pass over the rows gave besides, with `collect`.
        """
        choices_LBE, probabilities_LBE = aux["load"]
        tokens_B = jnp.sum(batch.segments_BT > 0, axis=1)
        balance = load_balancing(choices_LBE, probabilities_LBE, tokens_B)
        # Whole numbers: a few choices of billions are beside the rounding of float32.
        left_L = self.per_token * jnp.sum(tokens_B, dtype=jnp.int32) - jnp.sum(choices_LBE.astype(jnp.int32), (1, 2))
        return {"balance": balance}, {"choices_LE": jnp.sum(choices_LBE, axis=1), "dropped": jnp.sum(left_L)}

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """How a step's tokens used the experts. `expert_load`, `least_expert_load`: tokens of the busiest and of the
        idlest expert of any layer, as a multiple of an even share; `max_violation`: by how much a layer's busiest
        exceeds that, on average over layers (arXiv 2408.15664); `idle_experts`: the share of experts without a token;
        `dropped`: choices of tokens that no expert took, 0 unless replayed ones name experts that are not there.
        """
        choices_LE = sums["choices_LE"]
        load_LE = choices_LE / jnp.maximum(jnp.mean(choices_LE, axis=1, keepdims=True), 1e-9)
        return {
            "expert_load": jnp.max(load_LE),
            "least_expert_load": jnp.min(load_LE),
            "max_violation": jnp.mean(jnp.max(load_LE, axis=1) - 1),
            "idle_experts": jnp.mean(choices_LE == 0),
            "dropped": sums["dropped"],
        }
