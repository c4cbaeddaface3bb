"""What a loss returns."""

from typing import NamedTuple

import jax


class LossSum(NamedTuple):
    """A weighted sum and the sum of its weights, scalars in float32.

    Sums of both add up over micro-batches and devices; means of means do not (with uneven weights the gradient is off
    by a quarter).
    """

    total: jax.Array
    weight: jax.Array
