"""Mixed preference optimisation: which answer is preferred (DPO), how good each is by itself (BCO), and the LM loss of
the chosen one, which is `next_token` with weights 1.

Source: InternVL3.5 paper (arXiv 2508.18265) section 2.3; values and gradients as TRL 0.21.0's DPOTrainer with loss
types sigmoid, bco_pair and sft, on which the released training is built (weights 0.8, 0.2 and 1.0, beta 0.1).

A log-ratio is log-probability under the policy minus that under the reference, summed over the tokens of an answer.
Arrays are per pair and of any one shape; what the mask leaves out is no pair.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from internvl_jax.losses.loss_sum import LossSum


def preference(chosen: jax.Array, rejected: jax.Array, mask: jax.Array, beta: float) -> LossSum:
    """DPO: -log sigmoid(beta * (chosen - rejected)), summed over pairs.

    Args:
      chosen, rejected: log-ratios.
      mask: bool, the pairs that are there.
    """
    margin = jnp.where(mask, chosen, 0) - jnp.where(mask, rejected, 0)
    return LossSum.of(jax.nn.softplus(-beta * margin), mask)


def quality(chosen: jax.Array, rejected: jax.Array, mask: jax.Array, beta: float, delta: jax.Array) -> LossSum:
    """BCO: -log sigmoid(beta * chosen - delta) - log sigmoid(delta - beta * rejected), summed over pairs.

    Args:
      chosen, rejected: log-ratios.
      mask: bool, the pairs that are there.
      delta: mean of `RunningMean` that has taken in this batch; a constant for the gradient.
    """
    delta = jax.lax.stop_gradient(delta)
    good = jax.nn.softplus(delta - beta * jnp.where(mask, chosen, 0))
    bad = jax.nn.softplus(beta * jnp.where(mask, rejected, 0) - delta)
    return LossSum.of(good + bad, mask)


class RunningMean(NamedTuple):
    """BCO's reward shift: the mean over updates, the present one included, of the mean of beta * log-ratio.

    TRL updates it with every micro-batch of all devices, one observation whatever its size. Here it is updated once
    an optimizer step, over the whole batch, so that it does not depend on how a batch is cut; that equals the release
    at one micro-batch a step.

    Attributes:
      mean, count: float32 scalars.
    """

    mean: jax.Array
    count: jax.Array

    @classmethod
    def start(cls) -> "RunningMean":
        return cls(jnp.float32(0), jnp.float32(1e-24))  # TRL's first count

    def update(self, total: jax.Array, weight: jax.Array) -> "RunningMean":
        """One observation more; a batch without a pair is none.

        Args:
          total: sum of beta * log-ratio over chosen and rejected answers of the whole batch.
          weight: how many these are.
        """
        seen = weight > 0
        observed = total / jnp.where(seen, weight, 1)
        count = self.count + 1
        mean = self.mean + (observed - self.mean) / count
        return RunningMean(jnp.where(seen, mean, self.mean), jnp.where(seen, count, self.count))
