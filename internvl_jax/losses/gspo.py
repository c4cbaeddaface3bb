"""Group sequence policy optimisation: one importance ratio a response, rewards relative to those of the same prompt.

Source: GSPO (arXiv 2507.18071) and InternVL3.5 (arXiv 2508.18265) section 2.3; values and gradients as the release's
fork of verl (`compute_grpo_outcome_advantage`, `compute_policy_loss_gspo`).
"""

import jax
import jax.numpy as jnp

from internvl_jax.losses.loss_sum import LossSum
from internvl_jax.losses.sequences import segment_sums, spread

_EPS = 1e-6
_MOST = 10.0  # of a log ratio: exp(10) still has a gradient to speak of, exp(100) is not finite
_MOST_TOKEN, _MOST_KL = 20.0, 10.0


def advantages(rewards_PG: jax.Array, mask_PG: jax.Array | None = None) -> jax.Array:
    """float32 `[P, G]`: (reward - mean) / (std + 1e-6) over a prompt's responses, std unbiased.

    A response without others keeps its reward (mean 0, std 1). Equal rewards give exactly 0: left to rounding, a
    difference of 6e-8 over a std of 6e-8 would be an advantage of 0.06.

    Args:
      rewards_PG: of P prompts with G responses each.
      mask_PG: bool, responses that count; the others are in neither mean nor std and get 0. None counts all.
    """
    rewards_PG = jnp.asarray(rewards_PG, jnp.float32)
    mask_PG = jnp.ones(rewards_PG.shape, bool) if mask_PG is None else jnp.asarray(mask_PG, bool)
    rewards_PG = jnp.where(mask_PG, rewards_PG, 0)
    count_P1 = jnp.sum(mask_PG, axis=1, keepdims=True)
    mean_P1 = jnp.sum(rewards_PG, axis=1, keepdims=True) / jnp.maximum(count_P1, 1)
    centred_PG = jnp.where(mask_PG, rewards_PG - mean_P1, 0)
    std_P1 = jnp.sqrt(jnp.sum(centred_PG**2, axis=1, keepdims=True) / jnp.maximum(count_P1 - 1, 1))
    highest_P1 = jnp.max(rewards_PG, axis=1, keepdims=True, where=mask_PG, initial=-jnp.inf)
    equal_PG = jnp.all(jnp.where(mask_PG, rewards_PG == highest_P1, True), axis=1, keepdims=True)
    normalised_PG = jnp.where(equal_PG, 0, centred_PG / (std_P1 + _EPS))
    return jnp.where(count_P1 == 1, rewards_PG / (1 + _EPS), normalised_PG)


def policy(
    logprobs_BT: jax.Array,
    old_BT: jax.Array,
    mask_BT: jax.Array,
    segments_BT: jax.Array,
    advantages_BS: jax.Array,
    keep_BS: jax.Array,
    clip_low: float,
    clip_high: float,
) -> tuple[LossSum, dict[str, jax.Array]]:
    """-min(s A, clip(s, 1 - low, 1 + high) A) of every response, s = exp(mean over its tokens of log(new / old)).

    The release writes it per token, with s in the value and the token's own log-probability in the gradient, and
    averages over tokens, then over responses: the same value and gradient. So is its clamp of the mean log ratio to
    10, before exp; beyond it the gradient is 0.

    Args:
      logprobs_BT: float32, of the policy that is trained.
      old_BT: float32, of the policy that sampled.
      mask_BT: bool, tokens that were sampled.
      segments_BT: int32.
      advantages_BS: S is the most segments that a row may have.
      keep_BS: bool, responses that count; one that was cut off at its longest, or is not there, does not.
      clip_low, clip_high: 0.2 and 0.2 as released; 3e-4 and 4e-4 in the GSPO paper.

    Returns:
      The loss, its weight the number of responses that count and have a token; and of these responses, as scalars that
      add up over parts (those named max_ combine by maximum):
        tokens, difference: sum of |log(new / old)|, kl: sum of log(old / new), an estimate of KL(old || new),
        clipped: responses for which the clipped term is the smaller one, clipped_tokens: tokens of these (the
        release's clip fraction is clipped_tokens / tokens), max_difference: largest |log(new / old)| of a token,
        max_ratio: largest s.
    """
    S = advantages_BS.shape[1]
    on_BT, count_BS, kept_BS = _counted(mask_BT, segments_BT, keep_BS)
    difference_BT = _difference(logprobs_BT, old_BT, on_BT)
    mean_BS = segment_sums(difference_BT, segments_BT, S) / jnp.maximum(count_BS, 1)
    ratio_BS = jnp.exp(jnp.minimum(mean_BS, _MOST))
    free_BS = ratio_BS * advantages_BS
    clipped_BS = jnp.clip(ratio_BS, 1 - clip_low, 1 + clip_high) * advantages_BS
    loss = LossSum.of(-jnp.minimum(free_BS, clipped_BS), kept_BS)

    size_BT = jnp.abs(difference_BT)
    smaller_BS = clipped_BS < free_BS
    sums = {
        "tokens": jnp.sum(count_BS),
        "difference": jnp.sum(size_BT),
        "kl": -jnp.sum(difference_BT),
        "clipped": jnp.sum(smaller_BS, dtype=jnp.float32),
        "clipped_tokens": jnp.sum(jnp.where(smaller_BS, count_BS, 0)),
        "max_difference": jnp.max(size_BT),
        "max_ratio": jnp.max(jnp.where(kept_BS, ratio_BS, 0)),
    }
    return loss, jax.lax.stop_gradient(sums)


def kl_penalty(
    logprobs_BT: jax.Array, reference_BT: jax.Array, mask_BT: jax.Array, segments_BT: jax.Array, keep_BS: jax.Array
) -> LossSum:
    """Estimate of KL(policy || reference), mean over a response's tokens, summed over responses.

    With d = log(reference / policy) of a sampled token, exp(d) - 1 - d: not negative and of low variance (Schulman,
    "Approximating KL divergence", 2020). Clamped as verl's low_var_kl: d to 20 either way, the estimate to 10.

    Args:
      reference_BT: float32, log-probabilities under the frozen reference; the rest as for `policy`.
    """
    S = keep_BS.shape[1]
    on_BT, count_BS, kept_BS = _counted(mask_BT, segments_BT, keep_BS)
    d_BT = jnp.clip(_difference(reference_BT, logprobs_BT, on_BT), -_MOST_TOKEN, _MOST_TOKEN)
    estimate_BT = jnp.minimum(jnp.expm1(d_BT) - d_BT, _MOST_KL)
    return LossSum.of(segment_sums(estimate_BT, segments_BT, S) / jnp.maximum(count_BS, 1), kept_BS)


def _counted(mask_BT: jax.Array, segments_BT: jax.Array, keep_BS: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens that count, how many a response has, and the responses that have one."""
    on_BT = mask_BT & spread(keep_BS, segments_BT)
    count_BS = segment_sums(on_BT, segments_BT, keep_BS.shape[1])
    return on_BT, count_BS, count_BS > 0


def _difference(one_BT: jax.Array, other_BT: jax.Array, on_BT: jax.Array) -> jax.Array:
    """one - other in float32 where they count, else 0, and no gradient there."""
    # where before the difference: either may be -inf where it does not count.
    return jnp.where(on_BT, one_BT, 0).astype(jnp.float32) - jnp.where(on_BT, other_BT, 0).astype(jnp.float32)
