"""CPT and SFT: next-token prediction on packed conversations."""

from typing import Any

import jax
import jax.numpy as jnp

from internvl_jax.data import PlainRows, assemble_row
from internvl_jax.losses import LossSum, next_token
from internvl_jax.models import InternVL, token_logprobs
from internvl_jax.training.stages.balance import Balance, NoBalance
from internvl_jax.training.stages.base import Stage, Start
from internvl_jax.training.stages.packed_rows import PackedRows
from internvl_jax.training.stages.terms import Carry, Objective, Sums


class NextToken(Objective):
    """Next-token prediction.

    Args:
      balance: the load-balancing term of experts.
      logprob_chunk: how many positions' logits are held at once.
    """

    def __init__(self, balance: Balance | NoBalance, logprob_chunk: int):
        self.coefficients = {"ntp": 1.0, **balance.coefficients}
        self.balance, self.logprob_chunk = balance, logprob_chunk

    def weights(self, batch: Any) -> dict[str, jax.Array]:
        return {"ntp": jnp.sum(batch.weights_BT), **self.balance.weights(batch)}

    def forward(self, model: InternVL, batch: Any, key: jax.Array | None, reference: InternVL | None) -> Any:
        rows = batch.tokens_BT, batch.tiles_GHWC, batch.tile_mask_G, batch.segments_BT, batch.positions_BT
        out = model(*rows, key=key, collect=self.balance.collect)
        return token_logprobs(out.hidden_BTD, model.lm.head_VD, batch.targets_BT, self.logprob_chunk), out.aux

    def terms(self, outs: Any, batch: Any, carry: Carry) -> tuple[dict[str, LossSum], Sums]:
        logprobs_BT, aux = outs
        balance, sums = self.balance.terms(aux, batch)
        return {"ntp": next_token(logprobs_BT, batch.weights_BT), **balance}, sums

    def metrics(self, sums: Sums, carry: Carry) -> dict[str, jax.Array]:
        return self.balance.metrics(sums)


NTP = Stage(
    name="ntp",
    start=Start.NOTHING,
    objective=lambda _, balance, logprob_chunk: NextToken(balance, logprob_chunk),
    source=lambda _, parts: PackedRows(parts, PlainRows()),
    empty_row=lambda settings, model, sizes: assemble_row([], sizes),
)
