"""Where models and losses meet: an objective turns a model and a batch into named terms, each a sum and a weight."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from internvl_jax.losses import LossSum, next_token
from internvl_jax.models import InternVL, token_logprobs


class Objective(Protocol):
    """Attributes:
    coefficients: factor of every term in the loss.
    """

    coefficients: dict[str, float]

    def weights(self, batch: Any) -> dict[str, jax.Array]:
        """Weight of every term over the batch, from data alone: known before any forward pass."""
        ...

    def __call__(self, model: InternVL, batch: Any, key: jax.Array | None) -> dict[str, LossSum]: ...


class NextToken:
    """CPT and SFT."""

    def __init__(self, logprob_chunk: int):
        self.coefficients = {"ntp": 1.0}
        self.logprob_chunk = logprob_chunk

    def weights(self, batch: Any) -> dict[str, jax.Array]:
        return {"ntp": jnp.sum(batch.weights_BT)}

    def __call__(self, model: InternVL, batch: Any, key: jax.Array | None) -> dict[str, LossSum]:
        out = model(
            batch.tokens_BT, batch.tiles_GHWC, batch.tile_mask_G, batch.segments_BT, batch.positions_BT, key=key
        )
        logprobs_BT = token_logprobs(out.hidden_BTD, model.lm.head_VD, batch.targets_BT, self.logprob_chunk)
        return {"ntp": next_token(logprobs_BT, batch.weights_BT)}


OBJECTIVES = {"ntp": NextToken}
