"""Batches of preference pairs, with the reference's log-probabilities, which are computed once and kept.

1. Before the first step the reference model reads every pair of an epoch; log-probabilities of both responses go into a
   table `[samples, 2]`, saved under a key of data and model, now and then while it grows.
2. With the table whole the reference's weights are let go: a step holds one model. Beside adapters the reference is the
   frozen base that the state has anyway.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax.data import Batch, BatchIterator, Pipeline, RowConfig, assemble_row
from internvl_jax.errors import InputError
from internvl_jax.sharding import Params, locate
from internvl_jax.training.config import RunConfig
from internvl_jax.training.run.initial import read_initial, read_reference, shared_base
from internvl_jax.training.run.score import make_scorer
from internvl_jax.training.run.state import TrainState
from internvl_jax.training.stages.base import SourceParts
from internvl_jax.validation import read_arrays

_LOG = logging.getLogger(__name__)
_SAVE_SECONDS = 300.0


class Pairs(NamedTuple):
    """A batch of preference pairs. Segments 2k - 1 and 2k of a row are the chosen and the rejected response of a pair.

    Attributes:
      rows: loss weights are 1 on the tokens of both responses.
      reference_BX: float32, the log-probability that the reference model gives the response of segment s, at s - 1.
    """

    rows: Batch
    reference_BX: np.ndarray

    @property
    def texts(self) -> Batch:
        """What the trained model reads."""
        return self.rows


def empty_pairs(sizes: RowConfig) -> Pairs:
    """A row without any."""
    rows = assemble_row([], dataclasses.replace(sizes, several=True))
    return Pairs(rows, np.zeros(rows.samples_BX.shape, np.float32))


class PreferenceRows:
    """Packed rows of pairs, see `base.Source`.

    Args:
      pairs: the pairs of a step.
      cache_dir: the folder of the reference's log-probabilities; empty keeps them in the workdir.
    """

    def __init__(self, parts: SourceParts, pairs: int, cache_dir: str):
        self._pairs, self._run, self._program, self._reference = pairs, parts.run, parts.program, parts.reference
        self._shared = shared_base(parts.reference, parts.run.init_from, parts.program)
        self._computed = False
        self._folder = pathlib.Path(cache_dir or pathlib.Path(parts.run.workdir) / "reference")
        # The plan gives every pair a row of its own: a step takes a number of pairs, whatever rows they fill.
        planned = dataclasses.replace(parts.pipeline, kind="preferences", pack=False)
        self._pipeline = Pipeline(planned, parts.processor)
        self.digest = self._pipeline.fingerprint
        needed = self._pipeline.rows_needed(pairs, parts.run.steps, parts.program.share.count)
        if needed > parts.run.rows:
            raise InputError(
                f"{pairs} pairs fill up to {needed} rows of {planned.token_budget} tokens and {planned.tile_budget} "
                f"tiles, but run.rows is {parts.run.rows}; raise it (rows that stay empty cost next to nothing where "
                "run.micro_batches keeps them apart) or lower stage.pairs"
            )
        self._batches: Any = None
        self._table_N2, self._path = np.zeros((0, 2), np.float32), pathlib.Path()

    def start(self, position: Any) -> None:
        quantised = self._program.model.quantised
        self._path = table_path(self._folder, self._pipeline, self._reference, self._run, quantised)
        if not self._shared:
            self._compute(lambda: read_initial(self._reference, self._program), self._program.graphdef)
        self._batches = self._groups(position)

    def _compute(self, params: Callable[[], Params], graphdef: nnx.GraphDef) -> None:
        self._table_N2, self._computed = self._reference_table(params, graphdef), True

    def take(self, state: TrainState) -> Pairs:
        if not self._computed:  # the reference is the frozen base in the state
            base = lambda: self._program.reference_of(state.params, self._rest())
            self._compute(base, self._program.reference_graphdef)
        rows = next(self._batches)
        responses_BX = np.broadcast_to(np.arange(rows.samples_BX.shape[1]) % 2, rows.samples_BX.shape)
        reference_BX = np.where(rows.samples_BX >= 0, self._table_N2[rows.samples_BX, responses_BX], 0)
        if len(unread := rows.samples_BX[np.isnan(reference_BX)]):
            raise InputError(
                f"{self._pipeline.corpus.name(int(unread[0]))} can be read now, but could not when the reference's "
                f"log-probabilities were computed; remove {self._path} to compute them again"
            )
        return Pairs(rows, reference_BX.astype(np.float32))

    def position(self) -> Any:
        return self._batches.state()

    def notes(self) -> dict[str, float]:
        return {"skipped": self._batches.skipped}

    def close(self) -> None:
        self._batches.close()

    def _groups(self, position: Any) -> BatchIterator:
        run, share = self._run, self._program.share
        host = {"host": share.index, "hosts": share.count}
        return self._pipeline.groups(self._pairs, run.rows, run.micro_batches, **host, state=position)

    def _rest(self) -> Params:
        return read_reference(self._reference, self._program, self._run.init_from)

    def _reference_table(self, reference: Callable[[], Params], graphdef: nnx.GraphDef) -> np.ndarray:
        """float32 [I, 2]: the reference's log-probability of the chosen and of the rejected response of every sample
        that the run meets; NaN where one could not be loaded. Read from the cache as far as it goes, or computed and
        put there.
        """
        pipeline, program, run = self._pipeline, self._program, self._run
        epoch = pipeline.plan.rows(0)
        pairs = min(epoch, run.steps * self._pairs)
        table_I2, done = np.full((len(pipeline.tokens_I), 2), np.nan, np.float32), 0
        saved = _read(self._path)
        # A whole epoch serves every order of its pairs, a part of it the order that it was read in.
        if saved and (saved["done"] >= saved["epoch"] or saved["order"] == pipeline.fingerprint):
            table_I2, done = saved["table"], int(saved["done"])
        if done >= pairs:
            return table_I2
        everywhere = jax.jit(lambda *x: x, out_shardings=NamedSharding(program.mesh, P()))
        score = make_scorer(program, graphdef, run.micro_batches, run.logprob_chunk)
        params = reference()
        batches = self._groups({"rows": done, "seed": pipeline.config.seed, "fingerprint": pipeline.fingerprint})
        saved_at = time.monotonic()
        _LOG.info("reference log-probabilities: %d of %d pairs to go", pairs - done, pairs)
        try:
            while done < pairs:
                rows = program.place(next(batches))
                needed = rows.weights_BT, rows.segments_BT, rows.samples_BX
                _enter(table_I2, *jax.device_get((score(params, rows), everywhere(*needed))))
                done += self._pairs
                if time.monotonic() - saved_at > _SAVE_SECONDS:
                    _LOG.info("reference log-probabilities: %d of %d pairs", done, pairs)
                    _save(self._path, table=table_I2, order=pipeline.fingerprint, done=done, epoch=epoch)
                    saved_at = time.monotonic()
        finally:
            batches.close()
        _save(self._path, table=table_I2, order=pipeline.fingerprint, done=done, epoch=epoch)
        return table_I2


def table_path(
    folder: pathlib.Path, pipeline: Pipeline, reference: str, run: RunConfig, quantised: str | None = None
) -> pathlib.Path:
    """Where a reference's log-probabilities of these pairs are kept."""
    return folder / f"reference-{_key(reference, pipeline, run, quantised)}.npz"


def _enter(table_I2: np.ndarray, logps_BT: np.ndarray, rows: tuple[np.ndarray, ...]) -> None:
    """Writes a batch's sums into the table; `rows` are its weights, segments and sample numbers."""
    for logps_T, weights_T, segments_T, samples_X in zip(logps_BT, *rows, strict=True):
        real = int(np.sum(samples_X >= 0))
        values_T = np.where(weights_T > 0, logps_T, 0)
        sums_X = np.bincount(segments_T, values_T, minlength=real + 1)[1 : real + 1]
        table_I2[samples_X[:real], np.arange(real) % 2] = sums_X


def _key(source: str, pipeline: Pipeline, run: RunConfig, quantised: str | None) -> str:
    """A digest of the pairs, of the files of the model (a copy counts as another one), and of how it is computed."""
    checkpoint = locate(source)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    stats = [(str(path.relative_to(checkpoint)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    met = hashlib.sha256(pipeline.met.tobytes()).hexdigest()
    parts = [pipeline.data_digest, met, str(checkpoint.resolve()), stats, run.dtype]
    # Tables of earlier versions, which knew neither, go on.
    parts += [quantised] * (quantised is not None) + [[run.products]] * (run.products != "plain")
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """What `_save` wrote; nothing where there is no such file or it is damaged."""
    if not path.exists():
        return {}
    try:
        return read_arrays(path, {"table": "f2", "order": "U0", "done": "i0", "epoch": "i0"})
    except InputError as error:
        _LOG.warning("%s can't be read (%s); its log-probabilities are computed again", path, error)
        return {}


def _save(path: pathlib.Path, **arrays: Any) -> None:
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Runs, of several users too, may share the folder.
    temporary = path.with_name(f"{path.stem}-{uuid.uuid4().hex}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)
