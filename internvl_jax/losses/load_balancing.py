"""The auxiliary loss that keeps the experts of a mixture evenly used."""

import jax
import jax.numpy as jnp

from internvl_jax.losses.loss_sum import LossSum


def load_balancing(choices_LBE: jax.Array, probabilities_LBE: jax.Array, tokens_B: jax.Array) -> LossSum:
    """A row's loss is E times the sum over experts of (share of choices) x (mean probability), over its tokens in all
    layers; the experts that a token takes when all are used evenly. The total is the sum over rows.

    Source: Switch Transformer (arXiv 2101.03961) equations 4 to 6, over all layers together as transformers'
    `load_balancing_loss_func` (4.55 to 5.23). There a product of means over whatever a device holds at once, which
    in the released training is one packed row. Taken row by row it depends on no mesh and on no number of
    micro-batches.

    Args:
      choices_LBE: tokens of a row that took the expert.
      probabilities_LBE: sum of the router's probabilities over the row's tokens.
      tokens_B: tokens of the row; a row without any has loss and weight 0.
    """
    L, _, E = choices_LBE.shape
    count_B1 = jnp.maximum(L * tokens_B, 1)[:, None]
    loss_B = E * jnp.sum(jnp.sum(choices_LBE, axis=0) * jnp.sum(probabilities_LBE, axis=0) / count_B1**2, axis=1)
    return LossSum(jnp.sum(loss_B), jnp.sum(tokens_B > 0).astype(jnp.float32))
