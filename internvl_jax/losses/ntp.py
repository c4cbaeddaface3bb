"""Next-token prediction, the loss of CPT and SFT."""

import jax
import jax.numpy as jnp

from internvl_jax.losses.base import LossSum


def next_token(logprobs_BT: jax.Array, weights_BT: jax.Array) -> LossSum:
    """Weighted cross-entropy.

    With weights 1/sqrt(N), N the supervised tokens of a sample, this is the square averaging of InternVL3.5 (paper
    section 2.2; released modeling_internvl_chat.py at 2410d1d: sum(w * CE) / sum(w), the weights before the shift).

    Args:
      logprobs_BT: float32, log p(target).
      weights_BT: float32, 0 where not supervised.
    """
    # where before the product: an unsupervised log-probability of -inf must not become 0 * -inf = NaN.
    supervised = weights_BT > 0
    return LossSum(-jnp.sum(jnp.where(supervised, logprobs_BT, 0) * weights_BT), jnp.sum(weights_BT))
