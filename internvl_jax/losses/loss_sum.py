"""What a loss returns."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LossSum(NamedTuple):
    """A weighted sum and the sum of its weights, scalars in float32.

    Sums of both add up over micro-batches and devices; means of means do not (with uneven weights the gradient is off
    by a quarter).
    """

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> "LossSum":
        """From values and their weights, arrays of one shape; a mask will do. What has weight 0 does not exist."""
        # where before the product: what does not count may be infinite, and 0 * inf is NaN.
        counted = jnp.where(weights > 0, values.astype(jnp.float32), 0)
        return cls(jnp.sum(counted * weights), jnp.sum(weights, dtype=jnp.float32))
