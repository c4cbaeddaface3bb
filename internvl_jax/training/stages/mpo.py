"""Mixed preference optimisation: which of two responses is better, how good each is, how to write the better one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from internvl_jax.data.rows.batch import Batch
from internvl_jax.losses import LossSum, mpo, next_token, segment_sums
from internvl_jax.models import InternVL, Out, Slots, token_logprobs
from internvl_jax.training.config import MpoConfig
from internvl_jax.training.stages.balance import Balance, NoBalance
from internvl_jax.training.stages.base import Carry, Objective, Sums


class Pairs(NamedTuple):
    """A batch of preference pairs. Segments 2k - 1 and 2k of a row are the chosen and the rejected response of a pair.

    Attributes:
      rows: loss weights are 1 on the tokens of both responses.
      reference_BX: float32, log-probability of segment s's response under the reference model at s - 1.
    """

    rows: Batch
    reference_BX: np.ndarray


def read_rows(
    model: InternVL,
    rows: Batch,
    key: jax.Array | None = None,
    collect: tuple[str, ...] = (),
    routes_BTLK: jax.Array | None = None,
) -> Out:
    """The model's pass over rows of several texts, which may replay noted experts."""
    encoded = model.encode(rows.tiles_GHWC, key) if len(rows.tiles_GHWC) else None
    inputs = rows.tokens_BT, rows.tile_mask_G, rows.segments_BT, rows.positions_BT
    replay_LBTK = None if routes_BTLK is None else by_layer(routes_BTLK)
    return model.read(encoded, *inputs, collect, Slots(rows.slots_BJ, None), replay_LBTK)


def by_layer(routes_BTLK: jax.Array) -> jax.Array:
    """Noted experts as the model takes them, int32 `[L, B, T, K]`."""
    return jnp.moveaxis(routes_BTLK, 2, 0).astype(jnp.int32)


def summed_logprobs(logprobs_BT: jax.Array, rows: Batch) -> jax.Array:
    """`[B, X]`: the log-probability of every segment's response, summed over its tokens."""
    supervised_BT = rows.weights_BT > 0
    return segment_sums(jnp.where(supervised_BT, logprobs_BT, 0), rows.segments_BT, rows.samples_BX.shape[1])


class Mpo(Objective):
    """DPO + BCO + next-token loss on the chosen response, each with its own denominator over the whole batch.

    Source: InternVL3 paper (arXiv 2504.10479) section 2.3; the released trainer's loss types sigmoid, bco_pair, sft on
    trl 0.21.0. The running mean of rewards that BCO subtracts is the carry: it takes in one observation a step, the
    mean over the whole batch. The release takes one in a micro-batch; with one micro-batch a step the two are equal.
    """

    measures = True
    ragged = True
    columns = ("preference", "quality", "generation", "accuracy", "reward_margin", "delta")

    def __init__(self, config: MpoConfig, balance: Balance | NoBalance, logprob_chunk: int):
        weights = {"preference": config.preference, "quality": config.quality, "generation": config.generation}
        self.coefficients = {**weights, **balance.coefficients}
        self.beta, self.balance, self.logprob_chunk = config.beta, balance, logprob_chunk

    def start(self) -> Carry:
        return mpo.RunningMean.start()._asdict()

    def weights(self, batch: Pairs) -> dict[str, jax.Array]:
        pairs = jnp.sum(_real_pairs(batch.rows)).astype(jnp.float32)
        tokens = jnp.sum(_chosen_tokens(batch.rows)).astype(jnp.float32)
        weights = {"preference": pairs, "quality": pairs, "generation": tokens}
        return {**weights, **self.balance.weights(batch.rows)}

    def forward(self, model: InternVL, batch: Pairs, key: jax.Array | None, reference: InternVL | None) -> Any:
        out = read_rows(model, batch.rows, key, self.balance.collect)
        logprobs_BT = token_logprobs(out.hidden_BTD, model.lm.head_VD, batch.rows.targets_BT, self.logprob_chunk)
        return logprobs_BT, summed_logprobs(logprobs_BT, batch.rows), out.aux

    def measure(self, outs: Any, batch: Pairs) -> Sums:
        chosen_BY, rejected_BY, real_BY = self._ratios(outs, batch)
        rewards = self.beta * jnp.sum(jnp.where(real_BY, chosen_BY + rejected_BY, 0))
        return {"rewards": rewards, "responses": 2.0 * jnp.sum(real_BY)}

    def advance(self, carry: Carry, measured: Sums) -> Carry:
        mean = mpo.RunningMean(**carry)
        return mean.update(jnp.sum(measured["rewards"]), jnp.sum(measured["responses"]))._asdict()

    def terms(self, outs: Any, batch: Pairs, carry: Carry) -> tuple[dict[str, LossSum], Sums]:
        logprobs_BT, logps_BX, aux = outs
        chosen_BY, rejected_BY, real_BY = self._ratios(outs, batch)
        terms, sums = self.balance.terms(aux, batch.rows)
        terms |= {
            "preference": mpo.preference(chosen_BY, rejected_BY, real_BY, self.beta),
            "quality": mpo.quality(chosen_BY, rejected_BY, real_BY, self.beta, carry["mean"]),
            "generation": next_token(logprobs_BT, _chosen_tokens(batch.rows).astype(jnp.float32)),
        }
        total = lambda values_BY: jnp.sum(jnp.where(real_BY, values_BY, 0))
        sums |= {
            "pairs": jnp.sum(real_BY),
            "chosen_reward": self.beta * total(chosen_BY),
            "rejected_reward": self.beta * total(rejected_BY),
            "accuracy": total(chosen_BY > rejected_BY),
            "chosen_logp": total(_halves(logps_BX)[0]),
            "rejected_logp": total(_halves(logps_BX)[1]),
        }
        return terms, jax.lax.stop_gradient(sums)

    def metrics(self, sums: Sums, carry: Carry) -> dict[str, jax.Array]:
        """Means over pairs: rewards (beta times log-ratio to the reference) of both responses, how often the chosen
        one's is higher, their log-probabilities; and BCO's delta.
        """
        pairs = jnp.maximum(sums["pairs"], 1)
        names = ("chosen_reward", "rejected_reward", "accuracy", "chosen_logp", "rejected_logp")
        means = {name: sums[name] / pairs for name in names}
        margin = means["chosen_reward"] - means["rejected_reward"]
        return {**means, "reward_margin": margin, "delta": carry["mean"], **self.balance.metrics(sums)}

    def _ratios(self, outs: Any, batch: Pairs) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Log-ratios to the reference of chosen and rejected responses, and which pairs are real; `[B, Y]`."""
        _, logps_BX, _ = outs
        return (*_halves(logps_BX - batch.reference_BX), _real_pairs(batch.rows))


def _halves(values_BX: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the chosen and of the rejected responses, `[B, Y]` each."""
    paired_BX = values_BX[:, : values_BX.shape[1] // 2 * 2]
    return paired_BX[:, 0::2], paired_BX[:, 1::2]


def _real_pairs(rows: Batch) -> jax.Array:
    return _halves(rows.samples_BX)[0] >= 0


def _chosen_tokens(rows: Batch) -> jax.Array:
    """bool [B, T]: supervised tokens of chosen responses."""
    return (rows.weights_BT > 0) & (rows.segments_BT % 2 == 1)
