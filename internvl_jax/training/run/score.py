"""Log-probabilities of given texts, by the code that training computes them with."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax import sharding
from internvl_jax.data import Batch
from internvl_jax.models import token_logprobs
from internvl_jax.sharding import Params
from internvl_jax.training.run.program import Program
from internvl_jax.training.run.step import num_filled, split_rows
from internvl_jax.training.stages.several_texts import read_rows


def make_scorer(program: Program, graphdef: nnx.GraphDef, micro_batches: int, logprob_chunk: int) -> Any:
    """A jitted function (params, rows of several texts, experts to replay or None) -> float32 [B, T] log-probabilities
    of the targets, whole on every device; the rows are taken in as many parts as a step takes them, and empty parts at
    the end left out.

    Args:
      graphdef: the structure that the parameters belong to: the program's model or its reference.
    """

    def score(params: Params, rows: Batch, routes_BTLK: jax.Array | None = None) -> jax.Array:
        def part(rows: Batch, routes_BTLK: jax.Array | None) -> jax.Array:
            model = sharding.bind(graphdef, params)
            hidden_BTD = read_rows(model, rows, routes_BTLK=routes_BTLK).hidden_BTD
            return token_logprobs(hidden_BTD, model.lm.head_VD, rows.targets_BT, logprob_chunk)

        with sharding.use(program.mesh, program.rules):
            if micro_batches == 1:
                return part(rows, routes_BTLK)
            parts = split_rows((rows, routes_BTLK), micro_batches)
            enter = lambda i, found: found.at[i].set(part(*jax.tree.map(lambda array: array[i], parts)))
            zeros = jnp.zeros(parts[0].tokens_BT.shape, jnp.float32)
            found = jax.lax.fori_loop(0, num_filled(parts[0]), enter, zeros)
            return found.swapaxes(0, 1).reshape(rows.tokens_BT.shape)

    return program.jit(score, out_shardings=NamedSharding(program.mesh, P()))
