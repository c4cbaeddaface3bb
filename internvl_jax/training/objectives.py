"""Where models and losses meet: an objective turns a model and a batch into named terms, each a sum and a weight."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from internvl_jax.losses import LossSum, load_balancing, next_token
from internvl_jax.models import InternVL, token_logprobs
from internvl_jax.training.config import TrainConfig

Sums = dict[str, jax.Array]


class Objective(Protocol):
    """Attributes:
    coefficients: factor of every term in the loss.
    """

    coefficients: dict[str, float]

    def weights(self, batch: Any) -> dict[str, jax.Array]:
        """Weight of every term over the batch, from data alone: known before any forward pass."""
        ...

    def __call__(self, model: InternVL, batch: Any, key: jax.Array | None) -> tuple[dict[str, LossSum], Sums]:
        """The terms, and whatever else `metrics` is made of: arrays that add up over micro-batches."""
        ...

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """Scalars of the whole batch."""
        ...


class NextToken:
    """CPT and SFT."""

    def __init__(self, config: TrainConfig):
        self.coefficients = {"ntp": 1.0}
        self.logprob_chunk = config.run.logprob_chunk

    def weights(self, batch: Any) -> dict[str, jax.Array]:
        return {"ntp": jnp.sum(batch.weights_BT)}

    def __call__(self, model: InternVL, batch: Any, key: jax.Array | None) -> tuple[dict[str, LossSum], Sums]:
        return {"ntp": self.next_token(model, batch, key, ())[0]}, {}

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        return {}

    def next_token(self, model: InternVL, batch: Any, key: jax.Array | None, collect: tuple[str, ...]):
        """The loss, and intermediates of the model."""
        rows = batch.tokens_BT, batch.tiles_GHWC, batch.tile_mask_G, batch.segments_BT, batch.positions_BT
        out = model(*rows, key=key, collect=collect)
        logprobs_BT = token_logprobs(out.hidden_BTD, model.lm.head_VD, batch.targets_BT, self.logprob_chunk)
        return next_token(logprobs_BT, batch.weights_BT), out.aux


class BalancedNextToken(NextToken):
    """The same with experts, whose use is balanced row by row; padding does not count."""

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        self.coefficients |= {"balance": config.run.balance}

    def weights(self, batch: Any) -> dict[str, jax.Array]:
        rows = jnp.sum(jnp.any(batch.segments_BT > 0, axis=1)).astype(jnp.float32)
        return super().weights(batch) | {"balance": rows}

    def __call__(self, model: InternVL, batch: Any, key: jax.Array | None) -> tuple[dict[str, LossSum], Sums]:
        loss, aux = self.next_token(model, batch, key, ("load",))
        choices_LBE, probabilities_LBE = aux["load"]
        balance = load_balancing(choices_LBE, probabilities_LBE, jnp.sum(batch.segments_BT > 0, axis=1))
        return {"ntp": loss, "balance": balance}, {"choices_LE": jnp.sum(choices_LBE, axis=1)}

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """`expert_load`: tokens of the busiest expert of any layer, as a multiple of an even share."""
        choices_LE = sums["choices_LE"]
        mean_L1 = jnp.maximum(jnp.mean(choices_LE, axis=1, keepdims=True), 1e-9)
        return {"expert_load": jnp.max(choices_LE / mean_L1)}


def _next_token(config: TrainConfig) -> NextToken:
    return (NextToken if config.model.text.moe is None else BalancedNextToken)(config)


OBJECTIVES = {"ntp": _next_token}
