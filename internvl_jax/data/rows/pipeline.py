"""From a meta file to training batches, in an order that depends on nothing but the seed.

1. The length index of every data set is read or computed, samples that fit no row are refused or left out.
2. An epoch is a seeded permutation of the mixture (every sample `repeat_time` times), packed into rows from lengths
   alone (`plan.RowPlan`). Row r of the run is a pure function of (seed, r), random JPEG and what a
   row's layout draws included.
3. A global batch is the next B rows; host h of n loads block h of B / n of them, through grain, in worker processes and
   threads if asked, none of which can change the stream.
4. The position is the number of rows consumed. It names no host, so a run resumes on another number of hosts.
5. A sample that cannot be loaded leaves a gap of padding in its row; it is logged with its reason and counted, and more
   than `max_skipped` of them stop the run.
"""

import dataclasses
import hashlib
import json
import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from internvl_jax.data.processor import Processor
from internvl_jax.data.reading import lengths, preferences, samples, sources
from internvl_jax.data.rows import packing
from internvl_jax.data.rows.batch import Batch, RowConfig, Sample, fill_rows, next_fit, stack_rows
from internvl_jax.data.rows.order import RowPlan, arrange
from internvl_jax.data.rows.views import PlainRows, RowLayout
from internvl_jax.errors import InputError

_LOG = logging.getLogger(__name__)
_ROW_STREAM = 1  # keeps the random numbers of rows apart from those of epochs
_NAMES_LOGGED = 10
_PLAIN = PlainRows()

# How a line is read, and whether it has several texts about the same images.
KINDS = {"conversations": (sources.parse_record, False), "preferences": (preferences.parse_pair, True)}


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """What is read and how it is laid out. Released SFT: 32768 tokens, 96 tiles, 20 open packs, square weighting."""

    meta: str  # meta file
    kind: str  # what the samples are, one of KINDS
    token_budget: int  # tokens that a row holds
    tile_budget: int  # tiles that a row holds
    max_open: int  # how many packs stay open while packing
    pack: bool  # False: every sample gets a row of its own
    weighting: str  # how the loss is averaged: token, sample or square
    seed: int
    over_long: str  # what becomes of samples over a budget: 'error' or 'drop'
    max_skipped: int  # how many broken samples a host tolerates before it stops
    cache_dir: str | None  # folder of length indices; None keeps none
    workers: int  # processes that load batches; 0 loads in this one
    threads: int  # threads that load batches ahead, in each process; 0 loads when asked
    allow_outside_root: bool = False  # whether images may lie outside of their data set's root

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"the kind of the samples is {self.kind!r}; use one of {', '.join(KINDS)}.")
        if self.over_long not in ("error", "drop"):
            raise InputError(f"over_long is {self.over_long!r}; use 'error' or 'drop'.")
        leasts = {"token_budget": 1, "tile_budget": 0, "max_open": 1, "seed": 0, "workers": 0, "threads": 0}
        for name, least in leasts.items():
            if vars(self)[name] < least:
                raise InputError(f"{name} is {vars(self)[name]}; it must be at least {least}.")


class Pipeline:
    """The rows of a run: `row(r)` for any r, `batches(...)` for a host's share of the stream."""

    def __init__(self, config: PipelineConfig, processor: Processor, layout: RowLayout = _PLAIN):
        """Reads the meta file and the length indices.

        Args:
            layout: what a row holds of its samples.

        Raises:
            InputError: for unreadable files, samples over a budget (with over_long='error'), too many broken samples.
        """
        self.config, self.layout = config, layout
        image = processor.image_config
        parse, several = KINDS[config.kind]
        self.row_config = RowConfig(
            config.token_budget,
            config.tile_budget,
            image.tile_size,
            image.tokens_per_tile,
            processor.tokenizer.image_context,
            config.weighting,
            several,
        )
        datasets = sources.read_meta(config.meta, config.allow_outside_root)
        indices = [lengths.length_index(dataset, processor, config.cache_dir, parse) for dataset in datasets]
        self.corpus = samples.Corpus(
            [samples.SampleReader(d, i.offsets, processor, parse) for d, i in zip(datasets, indices, strict=True)]
        )
        self.tokens_I = np.concatenate([index.tokens for index in indices])
        self.tiles_I = np.concatenate([index.tiles for index in indices])
        self.lengths_I = layout.lengths(self.tokens_I, self.tiles_I)  # tokens in a row
        self.skipped = Skipped(config.max_skipped)
        for dataset, index in zip(datasets, indices, strict=True):
            if dataset.length not in (None, len(index.tokens)):
                _LOG.warning("%s has %d samples, not %d", dataset.annotation, len(index.tokens), dataset.length)
            self.skipped.extend(index.broken.values())
        self.dropped = self._over_long()  # sample numbers
        usable_I = self.lengths_I > 0
        usable_I[self.dropped] = False
        mixture = self.corpus.mixture()
        mixture = mixture[usable_I[mixture]]
        self.met = np.unique(mixture)  # numbers of the samples that an epoch has
        packs = packing.PackingConfig(config.token_budget, config.tile_budget, config.max_open)
        self.plan = RowPlan(mixture, self.lengths_I, self.tiles_I, packs, pack=config.pack, seed=config.seed)
        self.data_digest = self._data_digest([index.digest for index in indices])
        self.fingerprint = self._fingerprint()

    def row(self, number: int) -> tuple[NamedTuple, list[str]]:
        """Row `number` of the run (B = 1), and why samples of it are missing, if any."""
        loaded, rngs, skipped = self._samples(number)
        return self.layout.assemble(loaded, rngs, self.row_config), skipped

    def _samples(self, row: int) -> tuple[list[Sample], list[np.random.Generator], list[str]]:
        """The samples of a row, the random numbers of each, and why some are missing, if any."""
        loaded, rngs, skipped = [], [], []
        for place, sample in enumerate(self.plan.samples(row).tolist()):
            rng = np.random.default_rng((self.config.seed, _ROW_STREAM, row, place))
            try:
                loaded.append(self._load(sample, rng))
                rngs.append(rng)
            except InputError as error:
                skipped.append(str(error))
        return loaded, rngs, skipped

    def batches(
        self, rows: int, *, micro_batches: int | None = None, host: int = 0, hosts: int = 1, state: dict | None = None
    ) -> "BatchIterator":
        """An endless iterator over this host's part of global batches of `rows` rows.

        micro_batches: into how many parts a step takes the batch, whose rows are then arranged so that devices wait
            less for each other (`order.arrange`); None leaves them in the order of the run.
        state: `BatchIterator.state()` of an earlier run, to go on after its last batch; of any number of hosts.

        Raises:
            InputError: if rows do not divide among hosts, or the state belongs to other data.
        """
        share = _share(rows, "rows", host, hosts)

        def load(first: int) -> tuple[NamedTuple, list[str]]:
            numbers = np.arange(first, first + share)
            if micro_batches is not None:
                batch = np.arange(first - host * share, first - host * share + rows)
                costs = np.array([self.plan.cost(row) for row in batch.tolist()])
                numbers = batch[arrange(costs, micro_batches)][host * share :][:share]
            made, skipped = zip(*map(self.row, numbers.tolist()), strict=True)
            return stack_rows(made), [reason for reasons in skipped for reason in reasons]

        return BatchIterator(self, _Shares(load, rows, share, host, self._start_row(state)))

    def groups(
        self,
        samples: int,
        rows: int,
        micro_batches: int,
        *,
        host: int = 0,
        hosts: int = 1,
        state: dict | None = None,
    ) -> "BatchIterator":
        """Batches of `samples` samples, which fill at most `rows` rows; else as `batches`. The plan has to give each
        sample a row of its own.

        Raises:
            InputError: as `batches`; or if samples do not divide among hosts.
        """
        share, count = _share(samples, "samples", host, hosts), _share(rows, "rows", host, hosts)

        def load(first: int) -> tuple[Batch, list[str]]:
            loaded, _, skipped = zip(*map(self._samples, range(first, first + share)), strict=True)
            batch = fill_rows([each for part in loaded for each in part], self.row_config, count, micro_batches)
            return batch, [reason for reasons in skipped for reason in reasons]

        return BatchIterator(self, _Shares(load, samples, share, host, self._start_row(state)))

    def rows_needed(self, samples: int, batches: int, hosts: int) -> int:
        """The most rows that one of the first `batches` of `groups` fills, over all hosts."""
        share, most = _share(samples, "samples", 0, hosts), 0
        for start in range(0, samples * batches, share):
            numbers = np.concatenate([self.plan.samples(row) for row in range(start, start + share)])
            sizes = zip(self.lengths_I[numbers].tolist(), self.tiles_I[numbers].tolist(), strict=True)
            most = max(most, len(next_fit(sizes, self.row_config)))
        return most * hosts

    def _load(self, sample: int, rng: np.random.Generator) -> Sample:
        loaded = self.corpus.load(sample, rng)
        size = (len(loaded.tokens_T), len(loaded.tiles_GHWC))
        planned = (int(self.tokens_I[sample]), int(self.tiles_I[sample]))
        if size != planned:
            raise InputError(
                f"{loaded.name} has {size[0]} tokens and {size[1]} tiles but {planned[0]} and {planned[1]} were "
                "planned; correct the width and height that it notes, or delete the length index if files changed."
            )
        return loaded

    def _over_long(self) -> np.ndarray:
        config = self.config
        long = np.flatnonzero((self.lengths_I > config.token_budget) | (self.tiles_I > config.tile_budget))
        if len(long) and config.over_long == "error":
            first = long[0]
            raise InputError(
                f"{self.corpus.name(first)} has {self.lengths_I[first]} tokens and {self.tiles_I[first]} tiles, over "
                f"the row's budget of {config.token_budget} tokens and {config.tile_budget} tiles ({len(long)} such "
                "samples in all); raise the budget, lower the tile limit, or set over_long to 'drop'."
            )
        for number in long[:_NAMES_LOGGED]:
            _LOG.warning(
                "dropped %s: %d tokens, %d tiles",
                self.corpus.name(number),
                self.lengths_I[number],
                self.tiles_I[number],
            )
        if len(long):
            _LOG.warning("dropped %d samples over the budget of a row", len(long))
        return long

    def _start_row(self, state: dict | None) -> int:
        if state is None:
            return 0
        if state["seed"] != self.config.seed or state["fingerprint"] != self.fingerprint:
            raise InputError(
                f"the saved data position (row {state['rows']}, seed {state['seed']}) belongs to another data order: "
                f"meta file {self.config.meta}, its annotations, tokenizer, image options, budgets or seed "
                f"(now {self.config.seed}) have changed; restore them or start a new run."
            )
        return state["rows"]

    def _data_digest(self, digests: list[str]) -> str:
        """A digest of what samples say, independent of the machine."""
        parts = [digests, [reader.dataset.data_augment for reader in self.corpus.readers], self.config.kind]
        processor = self.corpus.readers[0].processor
        parts += [processor.tokenizer.digest, processor.to_dict()]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        for array in (self.tokens_I, self.tiles_I):
            digest.update(array.tobytes())
        return digest.hexdigest()[:32]

    def _fingerprint(self) -> str:
        """A digest of what samples say and of what decides which of them stand in which row.

        It takes in the rows of the first epoch as planned, since another release of numpy may shuffle otherwise.
        """
        config = self.config
        parts = [self.data_digest, config.token_budget, config.tile_budget, config.max_open, config.pack]
        digest = hashlib.sha256(json.dumps(parts).encode())
        packs = self.plan.packs(0)
        for array in (packs.samples, packs.starts):
            digest.update(array.tobytes())
        return digest.hexdigest()[:32]


def _leave_to_parent(worker: int, workers: int) -> None:
    """In a new worker: Ctrl-C comes to all processes of a terminal, and what becomes of the run is its parent's say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class BatchIterator(Iterator[NamedTuple]):
    """One host's batches; `skipped` counts the samples that could not be loaded so far."""

    def __init__(self, pipeline: Pipeline, source: "_Shares"):
        import grain  # here: it imports JAX, and processes that only read or grade do without

        config = pipeline.config
        self._rows_per_batch, self._pipeline, self._row = source.rows, pipeline, source.start
        options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=2 * config.threads)
        dataset = grain.MapDataset.source(source).to_iter_dataset(options)
        if config.workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers), _leave_to_parent)
        self._iterator = iter(dataset)

    def __next__(self) -> NamedTuple:
        batch, skipped = next(self._iterator)
        self._pipeline.skipped.extend(skipped)
        self._row += self._rows_per_batch
        return batch

    @property
    def skipped(self) -> int:
        """Different broken samples that this pipeline has met so far, those without a length included."""
        return len(self._pipeline.skipped.reasons)

    def state(self) -> dict:
        """The position after the last batch taken, the same on every host; JSON-able."""
        pipeline = self._pipeline
        return {"rows": self._row, "seed": pipeline.config.seed, "fingerprint": pipeline.fingerprint}

    def close(self) -> None:
        """Ends worker processes."""
        self._iterator.close()


@dataclasses.dataclass(frozen=True)
class _Shares:
    """Random access to a host's batches, as grain wants it."""

    load: Callable[[int], tuple[NamedTuple, list[str]]]  # the host's part, from its first row of the plan on
    rows: int  # how many rows of the plan a global batch takes
    share: int  # how many of these the host takes
    host: int
    start: int  # row that the first batch starts with

    def __len__(self) -> int:
        return 1 << 62  # the stream has no end

    def __getitem__(self, step: int) -> tuple[NamedTuple, list[str]]:
        return self.load(self.start + step * self.rows + self.host * self.share)


def _share(count: int, what: str, host: int, hosts: int) -> int:
    if count < 1 or count % hosts or not 0 <= host < hosts:
        raise InputError(f"host {host} of {hosts} cannot take its part of {count} {what}; {what} must divide evenly.")
    return count // hosts


class Skipped:
    """Reasons of broken samples, each once; too many are an error."""

    def __init__(self, limit: int):
        self._limit = limit
        self.reasons: set[str] = set()

    def extend(self, reasons: Iterable[str]) -> None:
        """Takes note of `reasons`; InputError if there are too many now."""
        for reason in reasons:
            if reason not in self.reasons:
                self.reasons.add(reason)
                _LOG.warning("skipped %s", reason)
            if len(self.reasons) > self._limit:
                raise InputError(
                    f"{reason} This is broken sample number {len(self.reasons)}, over the limit of {self._limit}; "
                    "run launch.check_data and correct the data, or raise max_skipped."
                )
