"""Log-probabilities of given texts, by the code that training computes them with."""

from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax import sharding
from internvl_jax.data.batch import Batch
from internvl_jax.training.objectives.mpo import response_logprobs
from internvl_jax.training.program import Program
from internvl_jax.training.step import split_rows


def make_scorer(program: Program, micro_batches: int, logprob_chunk: int) -> Any:
    """A jitted function (params, rows of several texts) -> float32 [B, T] log-probabilities of the targets, whole on
    every device; the rows are taken in as many parts as a step takes them.
    """

    def score(params, rows: Batch):
        def part(rows):
            return response_logprobs(sharding.bind(program.graphdef, params), rows, None, (), logprob_chunk)[0]

        with sharding.use(program.mesh, program.rules):
            if micro_batches == 1:
                return part(rows)
            logprobs = jax.lax.map(part, split_rows(rows, micro_batches))
            return logprobs.swapaxes(0, 1).reshape(rows.tokens_BT.shape)

    return jax.jit(score, out_shardings=NamedSharding(program.mesh, P()))
