"""Next-token prediction, the loss of CPT and SFT."""

import jax

from internvl_jax.losses.loss_sum import LossSum


def next_token(logprobs_BT: jax.Array, weights_BT: jax.Array) -> LossSum:
    """Weighted cross-entropy.

    With weights 1/sqrt(N), N the supervised tokens of a sample, this is the square averaging of InternVL3.5 (paper
    section 2.2; released modeling_internvl_chat.py at 2410d1d: sum(w * CE) / sum(w), the weights before the shift).

    Args:
      logprobs_BT: float32, log p(target).
      weights_BT: float32, 0 where not supervised.
    """
    return LossSum.of(-logprobs_BT, weights_BT)
