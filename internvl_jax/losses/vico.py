"""Visual consistency learning: answers should not change when tiles are shown with fewer tokens (stage 1), and a router
learns which tiles can be (stage 2).

Source: InternVL3.5 paper (arXiv 2508.18265) section 2.3. Its training code is not published.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from internvl_jax.losses.loss_sum import LossSum


def forward_kl(teacher_logits: jax.Array, student_logits: jax.Array) -> jax.Array:
    """float32 `[...]`: KL(teacher || student) of every position, over all of the last axis.

    Summed with weights by `LossSum.of`; 1 / N of an answer's tokens is the paper's mean.
    """
    teacher = jax.nn.log_softmax(teacher_logits.astype(jnp.float32))
    student = jax.nn.log_softmax(student_logits.astype(jnp.float32))
    # What the teacher excludes costs nothing, even where the student excludes it too: no inf - inf.
    possible = teacher > -jnp.inf
    return jnp.sum(jnp.exp(teacher) * (jnp.where(possible, teacher, 0) - jnp.where(possible, student, 0)), axis=-1)


def loss_ratio(compressed: jax.Array, full: jax.Array, epsilon: float) -> jax.Array:
    """What compression multiplies a loss by: (compressed + epsilon) / (full + epsilon), float32.

    A model that is its own reference has full = 0; epsilon is the loss below which differences don't matter, and with
    it on both sides two losses of nothing give 1.

    Args:
      compressed, full: losses at 64 and at 256 tokens a tile, not negative.
    """
    return (compressed.astype(jnp.float32) + epsilon) / (full.astype(jnp.float32) + epsilon)


def router_targets(ratio_G: jax.Array, threshold: jax.Array) -> jax.Array:
    """float32 `[G]`: 1 keeps a tile's 256 tokens (ratio at or above the threshold), 0 compresses it to 64."""
    return (ratio_G >= threshold).astype(jnp.float32)


def route_cross_entropy(route_G2: jax.Array, target_G: jax.Array, mask_G: jax.Array) -> LossSum:
    """Binary cross-entropy of the router.

    Args:
      route_G2: logits of the released router, whose column 0 is "compress" and column 1 "keep".
      target_G: what `router_targets` gives; 1 keeps.
      mask_G: bool, the tiles that are there.
    """
    # Two logits are one: of their difference, keep over compress.
    route_G2 = jnp.where(mask_G[:, None], route_G2, 0).astype(jnp.float32)
    keep_G = route_G2[:, 1] - route_G2[:, 0]
    return LossSum.of(jax.nn.softplus(keep_G) - target_G * keep_G, mask_G)


class RatioWindow(NamedTuple):
    """The last W loss ratios, a ring: value i of all ever pushed is in place i % W.

    Attributes:
      values_W: float32.
      count: int32, how many were ever pushed.
    """

    values_W: jax.Array
    count: jax.Array

    @classmethod
    def start(cls, W: int) -> "RatioWindow":
        return cls(jnp.zeros(W, jnp.float32), jnp.int32(0))

    def push(self, values_G: jax.Array, mask_G: jax.Array) -> "RatioWindow":
        """In order, those of the mask; of more than W the last W stay."""
        W = self.values_W.shape[0]
        pushed = jnp.sum(mask_G, dtype=jnp.int32)
        order_G = jnp.cumsum(mask_G, dtype=jnp.int32) - 1
        # Place W does not exist: what goes there is dropped. No two go to one place.
        place_G = jnp.where(mask_G & (order_G >= pushed - W), (self.count + order_G) % W, W)
        values_W = self.values_W.at[place_G].set(values_G.astype(jnp.float32), mode="drop")
        return RatioWindow(values_W, self.count + pushed)

    def percentile(self, share: float) -> jax.Array:
        """float32: the value below which lies a share (0 to 1) of the window, between two values by their distance.

        With nothing pushed yet it is -inf: every tile counts as one to keep, the mistake that costs no accuracy.
        """
        W = self.values_W.shape[0]
        filled = jnp.minimum(self.count, W)
        sorted_W = jnp.sort(jnp.where(jnp.arange(W) < filled, self.values_W, jnp.inf))
        place = share * jnp.maximum(filled - 1, 0).astype(jnp.float32)
        low = jnp.floor(place).astype(jnp.int32)
        high = jnp.ceil(place).astype(jnp.int32)
        below, above = sorted_W[low], sorted_W[high]
        between = below + jnp.where(high > low, (above - below) * (place - low), 0)
        return jnp.where(filled > 0, between, -jnp.inf)
