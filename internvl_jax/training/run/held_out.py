"""The loss on data that a run does not learn from."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax import sharding
from internvl_jax.data import Batch, Pipeline, PipelineConfig, Processor
from internvl_jax.losses import LossSum, next_token
from internvl_jax.models import token_logprobs
from internvl_jax.sharding import Params
from internvl_jax.training.config import RunConfig
from internvl_jax.training.run.program import Program
from internvl_jax.training.run.step import split_rows


class HeldOut:
    """Conversations of which every one is read each time, in the same rows, so figures of a run can be compared.

    Args:
      pipeline: what is read and how it is laid out in rows.
      run: how many rows are read at a time.
      program: the compiled side of the run.
      processor: turns samples into tokens and tiles.

    Raises:
      InputError: data that can't be read.
    """

    def __init__(self, pipeline: PipelineConfig, run: RunConfig, program: Program, processor: Processor):
        self._pipeline = Pipeline(dataclasses.replace(pipeline, workers=0), processor)
        self._rows, self._share, self._place = run.rows, program.share, program.place
        self._measure = make_measure(program, run.micro_batches, run.logprob_chunk)

    def loss(self, params: Params) -> float:
        """The mean next-token loss, weighted as in training."""
        host, hosts = self._share.index, self._share.count
        total = weight = 0.0
        batches, rows = self._pipeline.batches(self._rows, host=host, hosts=hosts), self._pipeline.plan.rows(0)
        try:
            for first in range(0, rows, self._rows):
                share = self._rows // hosts
                numbers = first + host * share + np.arange(share)
                batch: Any = next(batches)
                # What follows the last row is the first ones once more.
                batch = batch._replace(weights_BT=np.where((numbers < rows)[:, None], batch.weights_BT, 0))
                found = jax.device_get(self._measure(params, self._place(batch)))
                total, weight = total + float(found.total), weight + float(found.weight)
        finally:
            batches.close()
        return total / weight if weight else float("nan")


def make_measure(program: Program, micro_batches: int, logprob_chunk: int) -> Any:
    """A jitted function (params, rows) -> the `LossSum` of their next-token loss; the rows are taken in as many parts
    as a step takes them.
    """

    def measure(params: Params, rows: Batch) -> LossSum:
        model = sharding.bind(program.graphdef, params)

        def part(rows: Batch) -> LossSum:
            out = model(rows.tokens_BT, rows.tiles_GHWC, rows.tile_mask_G, rows.segments_BT, rows.positions_BT)
            logprobs_BT = token_logprobs(out.hidden_BTD, model.lm.head_VD, rows.targets_BT, logprob_chunk)
            return next_token(logprobs_BT, rows.weights_BT)

        with sharding.use(program.mesh, program.rules):
            if micro_batches == 1:
                return part(rows)
            found = jax.lax.map(part, split_rows(rows, micro_batches))
            return jax.tree.map(lambda sums: sums.sum(), found)

    return program.jit(measure, out_shardings=NamedSharding(program.mesh, P()))
