"""The auxiliary loss that keeps the experts of a mixture evenly used."""

import jax
import jax.numpy as jnp


def load_balancing(router_LBTE: jax.Array, mask_BT: jax.Array, per_token: int) -> jax.Array:
    """E times the sum over experts of (share of choices) x (mean probability); per_token when all are used evenly.

    Source: Switch Transformer (arXiv 2101.03961) equations 4 to 6, over all layers together as transformers'
    `load_balancing_loss_func` (4.55 to 5.23).

    Args:
      router_LBTE: the routers' logits.
      mask_BT: tokens that count; without any the loss is 0.
      per_token: experts that a token takes.
    """
    L, _, _, E = router_LBTE.shape
    probabilities = jax.nn.softmax(router_LBTE.astype(jnp.float32), axis=-1)
    _, experts = jax.lax.top_k(probabilities, per_token)
    mask = mask_BT.astype(jnp.float32)[None, :, :, None]
    count = jnp.maximum(L * jnp.sum(mask), 1)
    chosen_E = jnp.sum(jax.nn.one_hot(experts, E) * mask[..., None], axis=(0, 1, 2, 3)) / count
    probability_E = jnp.sum(probabilities * mask, axis=(0, 1, 2)) / count
    return E * jnp.sum(chosen_E * probability_E)
