"""One optimizer step, as a pure function of state and batch.

1. The weight of every loss term over the whole batch, from data alone.
2. A scan over micro-batches that sums gradients of sum_k coefficient_k * total_k / weight_k: equal to the big batch.
3. Clip, update; a step whose gradient is not finite leaves parameters and optimizer as they were and is counted.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from internvl_jax import sharding
from internvl_jax.data.batch import Batch
from internvl_jax.training.config import Group
from internvl_jax.training.objectives import Objective
from internvl_jax.training.state import TrainState, split_trainable

Metrics = dict[str, jax.Array]


def make_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    tx: optax.GradientTransformation,
    assigned: dict[str, Group],
    micro_batches: int,
    seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step function; trace it under `sharding.use`, jit it with the state donated."""

    def loss(trainable, frozen, batch, key, weights):
        model = sharding.bind(graphdef, {**trainable, **frozen})
        terms, sums = objective(model, batch, key)
        # A batch without a supervised token has loss 0, not 0/0.
        values = {name: term.total / jnp.maximum(weights[name], 1e-9) for name, term in terms.items()}
        return sum(objective.coefficients[name] * value for name, value in values.items()), (values, sums)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        weights = objective.weights(batch)
        trainable, frozen = split_trainable(state.params, assigned)
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def accumulate(grads, inputs):
            micro, index = inputs
            (_, sums), new = jax.value_and_grad(loss, has_aux=True)(
                trainable, frozen, micro, jax.random.fold_in(key, index), weights
            )
            return jax.tree.map(jnp.add, grads, new), sums

        zeros = jax.tree.map(jnp.zeros_like, trainable)
        if micro_batches == 1:
            grads, (values, sums) = accumulate(zeros, (batch, 0))
        else:
            parts = (split_rows(batch, micro_batches), jnp.arange(micro_batches))
            grads, stacked = jax.lax.scan(accumulate, zeros, parts)
            values, sums = jax.tree.map(lambda part: jnp.sum(part, axis=0), stacked)

        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm)
        updates, opt_state = tx.update(grads, state.opt_state, trainable)
        updated = ({**optax.apply_updates(trainable, updates), **frozen}, opt_state)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), updated, (state.params, state.opt_state)
        )
        nonfinite = jnp.where(finite, 0, state.nonfinite + 1)
        metrics = {
            "loss": sum(objective.coefficients[name] * value for name, value in values.items()),
            **values,
            **objective.metrics(sums),
            "grad_norm": norm,
            "nonfinite": nonfinite,
            "samples": jnp.sum(jnp.max(batch.segments_BT, axis=1)),
            "tokens": jnp.sum(batch.segments_BT > 0),
            "supervised": jnp.sum(batch.weights_BT > 0),
            "tiles": jnp.sum(batch.tile_mask_G),
        }
        return TrainState(state.step + 1, params, opt_state, nonfinite), metrics

    return step


def split_rows(batch: Batch, parts: int) -> Batch:
    """Every array as `[parts, ...]`; part j has rows j, j + parts, ...: each device keeps the rows that it holds."""
    rows = batch.tokens_BT.shape[0]

    def split(x):
        per_row = x.shape[0] // rows
        x = x.reshape(rows // parts, parts, per_row, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(parts, rows // parts * per_row, *x.shape[3:])

    return jax.tree.map(split, batch)
