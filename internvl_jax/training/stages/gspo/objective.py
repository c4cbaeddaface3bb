"""Group sequence policy optimisation of sampled responses."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from internvl_jax.data import Batch, RowConfig, assemble_row
from internvl_jax.losses import LossSum, gspo
from internvl_jax.models import InternVL, InternVLConfig, token_statistics
from internvl_jax.training.stages.balance import Balance, NoBalance
from internvl_jax.training.stages.gspo.settings import GspoConfig
from internvl_jax.training.stages.several_texts import by_layer, read_rows
from internvl_jax.training.stages.terms import Carry, Objective, Sums


class RolloutBatch(NamedTuple):
    """Rows of sampled responses, for one optimizer step.

    Attributes:
      rows: segments are prompts with a response each; loss weights are 1 on the tokens of responses.
      old_BT: float32, the log-probabilities of the targets under the policy before the batch's first step.
      advantages_BX: float32, the advantage of segment s's response, at s - 1.
      keep_BX: bool, whether the loss counts segment s's response, at s - 1.
      reference_BT: the same as `old_BT` under the frozen reference; None without KL.
      routes_BTLK: int16, the experts that the sampler took, -1 where none were noted; None where they are ignored.
      sampled_BT: the same as `old_BT` under those that drew the targets; None without importance weights.
    """

    rows: Batch
    old_BT: np.ndarray
    advantages_BX: np.ndarray
    keep_BX: np.ndarray
    reference_BT: np.ndarray | None = None
    routes_BTLK: np.ndarray | None = None
    sampled_BT: np.ndarray | None = None

    @property
    def texts(self) -> Batch:
        """What the trained model reads."""
        return self.rows


def empty_responses(settings: GspoConfig, model: InternVLConfig, sizes: RowConfig) -> RolloutBatch:
    """A row without any."""
    rows = assemble_row([], dataclasses.replace(sizes, several=True))
    of_tokens, of_texts = np.zeros(rows.tokens_BT.shape, np.float32), np.zeros(rows.samples_BX.shape, np.float32)
    routes_BTLK = None
    if settings.routes != "ignore":
        routes_BTLK = np.full((*rows.tokens_BT.shape, model.text.layers, model.text.moe.per_token), -1, np.int16)
    return RolloutBatch(
        rows,
        old_BT=of_tokens,
        advantages_BX=of_texts,
        keep_BX=of_texts > 0,
        reference_BT=of_tokens if settings.kl else None,
        routes_BTLK=routes_BTLK,
        sampled_BT=of_tokens if settings.importance_cap else None,
    )


class Gspo(Objective):
    """The clipped sequence-level objective, and a KL to the reference if asked.

    Drop path and dropout are off, so that the first step on a rollout batch meets the policy that sampled it.

    Source: GSPO (arXiv 2507.18071), InternVL3.5 (arXiv 2508.18265) section 2.3 and the released fork of verl.
    """

    ragged = True
    dropout = False

    def __init__(self, settings: GspoConfig, balance: Balance | NoBalance, logprob_chunk: int):
        kl = {"kl": settings.kl} if settings.kl else {}
        self.coefficients = {"policy": 1.0, **kl, **balance.coefficients}
        self.noted, self.replays = settings.routes != "ignore", settings.routes == "replay"
        self.clip, self.kl = (settings.clip_low, settings.clip_high), bool(settings.kl)
        self.cap = settings.importance_cap
        self.balance, self.logprob_chunk = balance, logprob_chunk

    def weights(self, batch: RolloutBatch) -> dict[str, jax.Array]:
        responses = jnp.sum(batch.keep_BX).astype(jnp.float32)
        names = ("policy", "kl") if self.kl else ("policy",)
        return {**dict.fromkeys(names, responses), **self.balance.weights(batch.rows)}

    def forward(self, model: InternVL, batch: RolloutBatch, key: jax.Array | None, reference: InternVL | None) -> Any:
        rows = batch.rows
        collect = (*self.balance.collect, "experts") if self.noted else self.balance.collect
        out = read_rows(model, rows, collect=collect, routes_BTLK=batch.routes_BTLK if self.replays else None)
        statistics = token_statistics(out.hidden_BTD, model.lm.head_VD, rows.targets_BT, self.logprob_chunk)
        return statistics, out.aux

    def terms(self, outs: Any, batch: RolloutBatch, carry: Carry) -> tuple[dict[str, LossSum], Sums]:
        (logprobs_BT, entropy_BT), aux = outs
        mask_BT = batch.rows.weights_BT > 0
        terms, sums = self.balance.terms(aux, batch.rows)
        at = mask_BT, batch.rows.segments_BT
        advantages_BX = batch.advantages_BX
        if self.cap:
            weights_BX, weighed = gspo.importance_weights(batch.old_BT, batch.sampled_BT, *at, batch.keep_BX, self.cap)
            # They are not negative, so both sides of the minimum are multiplied, and which one it is stays.
            advantages_BX, sums = advantages_BX * weights_BX, sums | weighed
        terms["policy"], health = gspo.policy(logprobs_BT, batch.old_BT, *at, advantages_BX, batch.keep_BX, *self.clip)
        if self.kl:
            terms["kl"] = gspo.kl_penalty(logprobs_BT, batch.reference_BT, *at, batch.keep_BX)
        if self.noted:
            sums |= _agreement(aux["experts"], by_layer(batch.routes_BTLK))
        entropy = jnp.sum(jnp.where(mask_BT, entropy_BT, 0))
        return terms, {**sums, **health, "entropy": entropy, "sampled": jnp.sum(mask_BT)}

    def metrics(self, sums: Sums, carry: Carry) -> dict[str, jax.Array]:
        """Over tokens of responses that count: `clip_fraction` (those of clipped responses, as released), `policy_kl`
        (of the policy before the batch's first step to this one), mean and max of |difference of log-probabilities|;
        the largest ratio of a response; the mean entropy of all sampled tokens; the share of experts that the routers
        would choose now among those that the sampler took; and of importance weights the mean and the share at the cap.
        """
        tokens = jnp.maximum(sums["tokens"], 1)
        return {
            "clip_fraction": sums["clipped_tokens"] / tokens,
            "policy_kl": sums["kl"] / tokens,
            "logprob_difference": sums["difference"] / tokens,
            "max_logprob_difference": sums["max_difference"],
            "max_ratio": sums["max_ratio"],
            "entropy": sums["entropy"] / jnp.maximum(sums["sampled"], 1),
            **({"router_agreement": sums["agreed"] / jnp.maximum(sums["noted"], 1)} if self.noted else {}),
            **(self._weighed(sums) if self.cap else {}),
            **self.balance.metrics(sums),
        }

    def _weighed(self, sums: Sums) -> dict[str, jax.Array]:
        responses = jnp.maximum(sums["weighed"], 1)
        return {"importance_weight": sums["weights"] / responses, "importance_capped": sums["capped"] / responses}


def _agreement(own_LBTK: jax.Array, noted_LBTK: jax.Array) -> Sums:
    real_LBTK = noted_LBTK >= 0
    found_LBTK = jnp.any(own_LBTK[..., :, None] == noted_LBTK[..., None, :], axis=-1) & real_LBTK
    return {"agreed": jnp.sum(found_LBTK, dtype=jnp.float32), "noted": jnp.sum(real_LBTK, dtype=jnp.float32)}
