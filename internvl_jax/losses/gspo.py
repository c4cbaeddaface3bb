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


def advantages(rewards_QA: jax.Array, mask_QA: jax.Array | None = None) -> jax.Array:
    """float32 `[Q, A]`: (reward - mean) / (std + 1e-6) over a prompt's responses, std unbiased.

    A response without others keeps its reward (mean 0, std 1). Equal rewards give exactly 0: left to rounding, a
    difference of 6e-8 over a std of 6e-8 would be an advantage of 0.06.

    Args:
      rewards_QA: the rewards of Q prompts with A responses each.
      mask_QA: bool, responses that count; the others are in neither mean nor std and get 0. None counts all.
    """
    rewards_QA = jnp.asarray(rewards_QA, jnp.float32)
    mask_QA = jnp.ones(rewards_QA.shape, bool) if mask_QA is None else jnp.asarray(mask_QA, bool)
    rewards_QA = jnp.where(mask_QA, rewards_QA, 0)
    count_Q1 = jnp.sum(mask_QA, axis=1, keepdims=True)
    mean_Q1 = jnp.sum(rewards_QA, axis=1, keepdims=True) / jnp.maximum(count_Q1, 1)
    centred_QA = jnp.where(mask_QA, rewards_QA - mean_Q1, 0)
    std_Q1 = jnp.sqrt(jnp.sum(centred_QA**2, axis=1, keepdims=True) / jnp.maximum(count_Q1 - 1, 1))
    highest_Q1 = jnp.max(rewards_QA, axis=1, keepdims=True, where=mask_QA, initial=-jnp.inf)
    equal_QA = jnp.all(jnp.where(mask_QA, rewards_QA == highest_Q1, True), axis=1, keepdims=True)
    normalised_QA = jnp.where(equal_QA, 0, centred_QA / (std_Q1 + _EPS))
    return jnp.where(count_Q1 == 1, rewards_QA / (1 + _EPS), normalised_QA)


def policy(
    logprobs_BT: jax.Array,
    old_BT: jax.Array,
    mask_BT: jax.Array,
    segments_BT: jax.Array,
    advantages_BX: jax.Array,
    keep_BX: jax.Array,
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
      advantages_BX: X is the most segments that a row may have.
      keep_BX: bool, responses that count; one that was cut off at its longest, or is not there, does not.
      clip_low, clip_high: 0.2 and 0.2 as released; 3e-4 and 4e-4 in the GSPO paper.

    Returns:
      The loss, its weight the number of responses that count and have a token; and of these responses, as scalars that
      add up over parts (those named max_ combine by maximum):
        tokens, difference: sum of |log(new / old)|, kl: sum of log(old / new), an estimate of KL(old || new),
        clipped: responses for which the clipped term is the smaller one, clipped_tokens: tokens of these (the
        release's clip fraction is clipped_tokens / tokens), max_difference: largest |log(new / old)| of a token,
        max_ratio: largest s.
    """
    X = advantages_BX.shape[1]
    on_BT, count_BX, kept_BX = _counted(mask_BT, segments_BT, keep_BX)
    difference_BT = _difference(logprobs_BT, old_BT, on_BT)
    mean_BX = segment_sums(difference_BT, segments_BT, X) / jnp.maximum(count_BX, 1)
    ratio_BX = jnp.exp(jnp.minimum(mean_BX, _MOST))
    free_BX = ratio_BX * advantages_BX
    clipped_BX = jnp.clip(ratio_BX, 1 - clip_low, 1 + clip_high) * advantages_BX
    loss = LossSum.of(-jnp.minimum(free_BX, clipped_BX), kept_BX)

    size_BT = jnp.abs(difference_BT)
    smaller_BX = clipped_BX < free_BX
    sums = {
        "tokens": jnp.sum(count_BX),
        "difference": jnp.sum(size_BT),
        "kl": -jnp.sum(difference_BT),
        "clipped": jnp.sum(smaller_BX, dtype=jnp.float32),
        "clipped_tokens": jnp.sum(jnp.where(smaller_BX, count_BX, 0)),
        "max_difference": jnp.max(size_BT),
        "max_ratio": jnp.max(jnp.where(kept_BX, ratio_BX, 0)),
    }
    return loss, jax.lax.stop_gradient(sums)


def importance_weights(
    old_BT: jax.Array,
    sampled_BT: jax.Array,
    mask_BT: jax.Array,
    segments_BT: jax.Array,
    keep_BX: jax.Array,
    cap: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """float32 `[B, X]`: w = min(exp(mean over a response's tokens of log(old / sampled)), cap), a constant.

    What a response's advantage is multiplied by where those that drew its tokens are other policies than the one that
    ratios are taken to: older ones, for tokens of earlier rollout batches, or a sampler that rounds otherwise. The
    ratio of `policy` is then to the policy before the batch's first step, which keeps the step small, and w stands for
    the way from those that sampled to that one. As s it is the geometric mean over the response, so that, not
    truncated, w s is the sequence-level ratio of the trained policy to those that sampled; a product over thousands of
    tokens would be 0 or the cap. Truncated from above, since that alone bounds the variance; what it takes away is
    bias towards 0.

    Source: decoupled objective of AReaL (arXiv 2505.24298), truncated importance sampling (Ionides, 2008; Yao et al.,
    "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025), both of which weigh tokens.

    Args:
      old_BT: float32, log-probabilities under the policy before the first step of the batch.
      sampled_BT: the same under the policies that drew the tokens.
      cap: at least 1.
      mask_BT, segments_BT, keep_BX: see `policy`.

    Returns:
      the weights, 0 where a response does not count, and as scalars that add up over parts: weights, their sum,
      capped, the number of those that are the cap, weighed, the number of responses.
    """
    X = keep_BX.shape[1]
    on_BT, count_BX, kept_BX = _counted(mask_BT, segments_BT, keep_BX)
    log_BX = segment_sums(_difference(old_BT, sampled_BT, on_BT), segments_BT, X) / jnp.maximum(count_BX, 1)
    weights_BX = jnp.where(kept_BX, jnp.minimum(jnp.exp(jnp.minimum(log_BX, _MOST)), cap), 0)
    sums = {
        "weights": jnp.sum(weights_BX),
        "capped": jnp.sum(kept_BX & (weights_BX >= cap), dtype=jnp.float32),
        "weighed": jnp.sum(kept_BX, dtype=jnp.float32),
    }
    return jax.lax.stop_gradient((weights_BX, sums))


def kl_penalty(
    logprobs_BT: jax.Array, reference_BT: jax.Array, mask_BT: jax.Array, segments_BT: jax.Array, keep_BX: jax.Array
) -> LossSum:
    """Estimate of KL(policy || reference), mean over a response's tokens, summed over responses.

    With d = log(reference / policy) of a sampled token, exp(d) - 1 - d: not negative and of low variance (Schulman,
    "Approximating KL divergence", 2020). Clamped as verl's low_var_kl: d to 20 either way, the estimate to 10.

    Args:
      reference_BT: float32, log-probabilities under the frozen reference; the rest as for `policy`.
    """
    X = keep_BX.shape[1]
    on_BT, count_BX, kept_BX = _counted(mask_BT, segments_BT, keep_BX)
    d_BT = jnp.clip(_difference(reference_BT, logprobs_BT, on_BT), -_MOST_TOKEN, _MOST_TOKEN)
    estimate_BT = jnp.minimum(jnp.expm1(d_BT) - d_BT, _MOST_KL)
    return LossSum.of(segment_sums(estimate_BT, segments_BT, X) / jnp.maximum(count_BX, 1), kept_BX)


def _counted(mask_BT: jax.Array, segments_BT: jax.Array, keep_BX: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens that count, how many a response has, and the responses that have one."""
    on_BT = mask_BT & spread(keep_BX, segments_BT)
    count_BX = segment_sums(on_BT, segments_BT, keep_BX.shape[1])
    return on_BT, count_BX, count_BX > 0


def _difference(one_BT: jax.Array, other_BT: jax.Array, on_BT: jax.Array) -> jax.Array:
    """one - other in float32 where they count, else 0, and no gradient there."""
    # where before the difference: either may be -inf where it does not count.
    return jnp.where(on_BT, one_BT, 0).astype(jnp.float32) - jnp.where(on_BT, other_BT, 0).astype(jnp.float32)
