"""One optimizer step, as a pure function of state and batch.

1. The weight of every loss term over the whole batch, from data alone.
2. What terms need to know of the whole batch (BCO's running mean), by a forward pass if there are micro-batches.
3. A loop over micro-batches that sums gradients of sum_k coefficient_k * total_k / weight_k: equal to the big batch.
4. Clip, update; a step whose gradient is not finite leaves parameters and optimizer as they were and is counted.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from internvl_jax import sharding
from internvl_jax.data import Batch
from internvl_jax.losses import LossSum
from internvl_jax.models import TextConfig, left_out, scopes, seen_keys, with_dropout
from internvl_jax.sharding import Params
from internvl_jax.training.config import Group
from internvl_jax.training.run.optim import AdamW
from internvl_jax.training.run.state import TrainState, split_trainable
from internvl_jax.training.stages.terms import Carry, Objective, Sums, combine

Metrics = dict[str, jax.Array]
_DROPOUT = 3  # keeps the random numbers of adapters apart from those of the model, which has the first ones
# Gradients, values of the terms, sums, the new carry.
Gradient = tuple[Params, dict[str, jax.Array], Sums, Carry]


def make_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    tx: AdamW,
    assigned: dict[str, Group],
    micro_batches: int,
    seed: int,
    refer: Callable[[Params, Params], nnx.Module],
    attended: Callable[[Batch], Metrics],
) -> Callable[[TrainState, Any, Params | None], tuple[TrainState, Metrics]]:
    """The step function; trace it under `sharding.use`, jit it with the state donated.

    Its last argument are parameters of the frozen reference model, for objectives that refer to one.

    Args:
      refer: makes the reference model of the parameters of the state and of these.
      attended: what attention meets in the rows that the trained model reads, see `attention_metrics`.
    """

    def step(state: TrainState, batch: Any, reference: Params | None = None) -> tuple[TrainState, Metrics]:
        trainable, frozen = split_trainable(state.params, assigned)
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def forward(trainable: Params, micro: Any, index: jax.Array | int) -> Any:
            model, own = sharding.bind(graphdef, {**trainable, **frozen}), jax.random.fold_in(key, index)
            if objective.dropout:
                model = with_dropout(model, jax.random.fold_in(own, _DROPOUT))
            refers = None if reference is None else refer(frozen, reference)
            return objective.forward(model, micro, own, refers)

        gradient = _whole if micro_batches == 1 else functools.partial(_in_parts, parts=micro_batches)
        grads, values, sums, carry = gradient(objective, forward, trainable, batch, state.carry)

        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm)
        trainable, opt_state = tx.update(grads, norm, state.opt_state, trainable)
        carry = jax.tree.map(lambda new, old: jax.lax.select(finite, new, old), carry, state.carry)
        nonfinite = jnp.where(finite, 0, state.nonfinite + 1)
        rows, texts = batch.rows, batch.texts
        metrics = {
            "loss": sum(objective.coefficients[name] * value for name, value in values.items()),
            **values,
            **objective.metrics(sums, carry),
            "grad_norm": norm,
            "nonfinite": nonfinite,
            "imbalance": _imbalance(rows, micro_batches),
            "samples": jnp.sum(jnp.max(rows.segments_BT, axis=1)),
            "tokens": jnp.sum(texts.segments_BT > 0),
            "supervised": jnp.sum(rows.weights_BT > 0),
            "tiles": jnp.sum(rows.tile_mask_G),
            **attended(texts),
        }
        return TrainState(state.step + 1, {**trainable, **frozen}, opt_state, nonfinite, carry), metrics

    return step


def attention_metrics(texts: Batch, config: TextConfig, skips: bool) -> Metrics:
    """What a step's attention has to do: 'seen', the keys that all tokens see; 'blocks_left_out', of the blocks that
    rows of one sample would meet the share that is left out, where any are.

    Args:
      skips: whether blocks of other samples are left out.
    """
    seen_BT = seen_keys(config, texts.positions_BT.astype(jnp.float32))
    skipped = left_out(texts.segments_BT) if skips else None
    return {
        "seen": jnp.sum(jnp.where(texts.segments_BT > 0, seen_BT, 0)),
        **({} if skipped is None else {"blocks_left_out": skipped}),
    }


def _imbalance(rows: Batch, micro_batches: int) -> jax.Array:
    """What attention costs the fullest device, as a multiple of the mean: by sums of squared lengths of samples, each
    micro-batch apart, since devices wait for each other there.
    """
    # A sample of n tokens: the odd numbers up to 2n - 1.
    cost_BT = jnp.where(rows.segments_BT > 0, 2 * rows.positions_BT.astype(jnp.float32) + 1, 0)
    devices = sharding.spread("batch")
    cost = jnp.sum(jnp.sum(cost_BT, axis=1).reshape(devices, -1, micro_batches), axis=1)  # [devices, micro-batches]
    return jnp.sum(jnp.max(cost, axis=0)) / jnp.maximum(jnp.sum(jnp.mean(cost, axis=0)), 1)


def _whole(objective: Objective, forward: Callable, trainable: Params, batch: Any, carry: Carry) -> Gradient:
    """The gradients of a batch in one piece, the values of its terms, its sums and the new carry."""
    weights = objective.weights(batch)

    def loss(trainable: Params) -> tuple[jax.Array, tuple]:
        outs = forward(trainable, batch, 0)
        measured = jax.lax.stop_gradient(objective.measure(outs, batch))
        after = objective.advance(carry, jax.tree.map(lambda value: value[None], measured))
        terms, sums = objective.terms(outs, batch, after)
        return _total(objective, terms, weights, (sums, after))

    (_, (values, (sums, after))), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
    return grads, values, sums, after


def _in_parts(
    objective: Objective, forward: Callable, trainable: Params, batch: Any, carry: Carry, parts: int
) -> Gradient:
    """What `_whole` gives, in micro-batches."""
    weights, micros = objective.weights(batch), split_rows(batch, parts)
    take = lambda i: jax.tree.map(lambda array: array[i], micros)
    # XLA guesses costs where it does not know the number of rounds: that is left open only where rows may be missing.
    rounds = num_filled(micros.rows) if objective.ragged else parts

    def loop(body: Callable, start: Any) -> Any:
        with jax.named_scope(scopes.turns_scope(parts)):
            return jax.lax.fori_loop(0, rounds, body, start)

    zeros = lambda shapes: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    if objective.measures:
        measure = lambda micro, i: objective.measure(forward(trainable, micro, i), micro)
        enter = lambda i, found: jax.tree.map(lambda x, new: x.at[i].set(new), found, measure(take(i), i))
        shapes = jax.eval_shape(jax.vmap(measure), micros, jnp.arange(parts))
        carry = objective.advance(carry, loop(enter, zeros(shapes)))

    def loss(trainable: Params, i: jax.Array | int) -> tuple[jax.Array, tuple]:
        micro = take(i)
        terms, sums = objective.terms(forward(trainable, micro, i), micro, carry)
        return _total(objective, terms, weights, sums)

    def accumulate(i: jax.Array | int, so_far: tuple | None) -> tuple:
        (_, (values, sums)), grads = jax.value_and_grad(loss, has_aux=True)(trainable, i)
        return _add(so_far, (grads, values, sums))

    first = jax.eval_shape(lambda: accumulate(0, None))
    return *loop(accumulate, zeros(first)), carry


def _total(
    objective: Objective, terms: dict[str, LossSum], weights: dict[str, jax.Array], others: Any
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
    """The loss; and the values of its terms, with whatever else is to be returned."""
    # A batch without a supervised token has loss 0, not 0/0.
    values = {name: term.total / jnp.maximum(weights[name], 1e-9) for name, term in terms.items()}
    return sum(objective.coefficients[name] * value for name, value in values.items()), (values, others)


def _add(so_far: tuple | None, new: tuple) -> tuple:
    """(gradients, values, sums) of two parts of a batch together."""
    if so_far is None:
        return new
    grads, values = jax.tree.map(jnp.add, so_far[:2], new[:2])
    return grads, values, combine(so_far[2], new[2])


def num_filled(parts: Batch) -> jax.Array:
    """How many of the parts of `split_rows` hold anything; the empty ones are the last."""
    return jnp.sum(jnp.any(parts.segments_BT > 0, axis=(1, 2)))


def split_rows(batch: Any, parts: int) -> Any:
    """Every array as `[parts, ...]`; part j has rows j, j + parts, ...: each device keeps the rows that it holds."""
    rows = jax.tree.leaves(batch)[0].shape[0]  # tokens come first in every batch

    def split(x: jax.Array) -> jax.Array:
        per_row = x.shape[0] // rows
        x = x.reshape(rows // parts, parts, per_row, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(parts, rows // parts * per_row, *x.shape[3:])

    return jax.tree.map(split, batch)
