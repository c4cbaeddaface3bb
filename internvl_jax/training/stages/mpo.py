"""Mixed preference optimisation: which of two responses is better, how good each is, how to write the better one."""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from msgspec import Meta

from internvl_jax.data import Batch
from internvl_jax.losses import LossSum, mpo, next_token, segment_sums
from internvl_jax.models import InternVL, token_logprobs
from internvl_jax.training.config import StageConfig
from internvl_jax.training.stages.balance import Balance, NoBalance
from internvl_jax.training.stages.base import Stage, Start
from internvl_jax.training.stages.preference_rows import Pairs, PreferenceRows, empty_pairs
from internvl_jax.training.stages.several_texts import read_rows
from internvl_jax.training.stages.terms import Carry, Objective, Sums
from internvl_jax.validation import NotNegative, Positive


@dataclasses.dataclass
class MpoConfig(StageConfig):
    """Mixed preference optimisation; the released values are 256, 0.8, 0.2, 1.0 and 0.1.

    Attributes:
      pairs: the pairs of an optimizer step; they are packed into `run.rows` rows, of which some may stay empty.
      preference: the weight of DPO's loss.
      quality: the weight of BCO's loss.
      generation: the weight of the next-token loss on chosen responses.
      beta: how much a log-ratio to the reference is worth, in DPO and in BCO.
      cache_dir: the folder of the reference's log-probabilities; empty keeps them in the workdir.
    """

    pairs: Annotated[int, Meta(ge=1, le=10**7)] = 256
    preference: NotNegative = 0.8
    quality: NotNegative = 0.2
    generation: NotNegative = 1.0
    beta: Positive = 0.1
    cache_dir: str = ""


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

    def __init__(self, settings: MpoConfig, balance: Balance | NoBalance, logprob_chunk: int):
        weights = {"preference": settings.preference, "quality": settings.quality, "generation": settings.generation}
        self.coefficients = {**weights, **balance.coefficients}
        self.beta, self.balance, self.logprob_chunk = settings.beta, balance, logprob_chunk

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
    """The values of the chosen and those of the rejected responses, `[B, Y]` each."""
    paired_BX = values_BX[:, : values_BX.shape[1] // 2 * 2]
    return paired_BX[:, 0::2], paired_BX[:, 1::2]


def _real_pairs(rows: Batch) -> jax.Array:
    return _halves(rows.samples_BX)[0] >= 0


def _chosen_tokens(rows: Batch) -> jax.Array:
    """bool [B, T]: supervised tokens of chosen responses."""
    return (rows.weights_BT > 0) & (rows.segments_BT % 2 == 1)


MPO = Stage(
    name="mpo",
    settings=MpoConfig,
    free=frozenset({"cache_dir"}),
    start=Start.MODEL,
    objective=Mpo,
    source=lambda settings, parts: PreferenceRows(parts, settings.pairs, settings.cache_dir),
    empty_row=lambda settings, model, sizes: empty_pairs(sizes),
    columns=("preference", "quality", "generation", "accuracy", "reward_margin", "delta"),
    summary=lambda settings, steps: [f"pairs: {settings.pairs:,} a step, {steps * settings.pairs:,} in all"],
)
