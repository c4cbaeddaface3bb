"""Log-probabilities of given texts, by the code that training computes them with."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax import sharding
from internvl_jax.data.batch import Batch
from internvl_jax.training.objectives.mpo import response_logprobs
from internvl_jax.training.program import Program
from internvl_jax.training.step import num_filled, split_rows


def make_scorer(program: Program, micro_batches: int, logprob_chunk: int) -> Any:
    """A jitted function (params, rows of several texts) -> float32 [B, T] log-probabilities of the targets, whole on
    every device; the rows are taken in as many parts as a step takes them, and empty parts at the end left out.
    """

    def score(params, rows: Batch):
        def part(rows):
            return response_logprobs(sharding.bind(program.graphdef, params), rows, None, (), logprob_chunk)[0]

        with sharding.use(program.mesh, program.rules):
            if micro_batches == 1:
                return part(rows)
            parts = split_rows(rows, micro_batches)
            take = lambda i: jax.tree.map(lambda array: array[i], parts)
            zeros = jnp.zeros(parts.tokens_BT.shape, jnp.float32)
            found = jax.lax.fori_loop(0, num_filled(parts), lambda i, found: found.at[i].set(part(take(i))), zeros)
            return found.swapaxes(0, 1).reshape(rows.tokens_BT.shape)

    return jax.jit(score, out_shardings=NamedSharding(program.mesh, P()))
