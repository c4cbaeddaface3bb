"""What an objective is: it turns a model and a batch into named terms, each a sum and a weight."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from internvl_jax.losses import LossSum
from internvl_jax.models import FLASH_PARTS, InternVL

Sums = dict[str, jax.Array]
Carry = dict[str, jax.Array]


class Objective(Protocol):
    """A step calls, in this order: `weights`, `forward`, `measure`, `advance`, `terms`, `metrics`.

    `forward`, `measure` and `terms` see a micro-batch, the others the whole batch. `metrics` are made of sums, so a
    step's figures don't depend on its micro-batches.

    Attributes:
      coefficients: the factor of every term in the loss.
      measures: `measure` returns something that `terms` needs; several micro-batches then take a forward pass before.
      ragged: the last micro-batches of a step may be empty; those are skipped.
      dropout: whether adapters' dropout acts; not where a pass must meet that of the policy that sampled.
      idle: a pattern of the parameters that it gives no gradient, which therefore have to be frozen.
    """

    coefficients: dict[str, float]
    measures: bool = False
    ragged: bool = False
    dropout: bool = True
    idle: str = FLASH_PARTS

    def start(self) -> Carry:
        """What is carried from step to step, before the first."""
        return {}

    def weights(self, batch: Any) -> dict[str, jax.Array]:
        """Weight of every term over the batch, from data alone: known before any forward pass."""
        ...

    def forward(self, model: InternVL, batch: Any, key: jax.Array | None, reference: InternVL | None) -> Any:
        """What terms are made of, differentiable; `reference` is None unless the stage `refers` to one."""
        ...

    def measure(self, outs: Any, batch: Any) -> Any:
        """What `advance` needs."""
        return {}

    def advance(self, carry: Carry, measured: Any) -> Carry:
        """The carry after this batch, which its terms are taken with.

        Args:
          measured: what `measure` returned, with a leading axis of micro-batches.
        """
        return carry

    def terms(self, outs: Any, batch: Any, carry: Carry) -> tuple[dict[str, LossSum], Sums]:
        """The terms, and whatever else `metrics` is made of: arrays that add up over micro-batches; those whose name
        starts with 'max_' combine by the maximum.
        """
        ...

    def metrics(self, sums: Sums, carry: Carry) -> dict[str, jax.Array]:
        """Scalars of the whole batch."""
        return {}


def combine(one: Sums, other: Sums) -> Sums:
    """Sums of two micro-batches together."""
    return {
        name: jnp.maximum(value, other[name]) if name.startswith("max_") else value + other[name]
        for name, value in one.items()
    }
