"""Everything that can be wrong with a meta file, found before a run instead of during it.

1. Every line of every annotation is parsed, its images are looked up (decoded if asked), its tokens counted.
2. Each fault is one problem that names FILE:LINE; a fault never hides the faults after it.
3. What is sound is summed up: a histogram of tokens, how many rows an epoch packs into, some samples as text.
"""

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from internvl_jax.data.processor import Processor
from internvl_jax.data.reading import samples, sources
from internvl_jax.data.rows import order, packing
from internvl_jax.data.rows.batch import Sample
from internvl_jax.errors import InputError

_LOG = logging.getLogger(__name__)
_LOG_SECONDS = 10.0
_BAR = 50  # characters of the longest bar of the histogram


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What `check` found. Samples with a problem are in `problems` only."""

    samples: int  # lines read
    problems: list[str]
    tokens_I: np.ndarray  # tokens of every sound sample
    tiles_I: np.ndarray
    frames_I: np.ndarray  # frames of videos among the tiles, 0 where there is none
    rows: packing.FillStatistics | None  # how an epoch of sound samples is packed; None if there are none
    rendered: list[str]

    def text(self, show: int) -> str:
        """The report for a terminal, with at most `show` of the problems."""
        hidden = len(self.problems) - show
        lines = [histogram(self.tokens_I), *(f"\n{text}" for text in self.rendered), ""]
        lines += [f"{len(self.problems)} problems{':' if self.problems else ''}", *self.problems[:show]]
        return "\n".join([*lines, f"... and {hidden} more (--show_problems)"] if hidden > 0 else lines)

    def summary(self) -> dict:
        """JSON-able counts."""
        fill = dataclasses.asdict(self.rows) if self.rows else {"rows": 0, "token_fill": 0.0, "tile_fill": 0.0}
        return {
            "samples": self.samples,
            "problems": len(self.problems),
            "tokens": int(self.tokens_I.sum()),
            "longest": int(self.tokens_I.max(initial=0)),
            "tiles": int(self.tiles_I.sum()),
            "videos": int(np.count_nonzero(self.frames_I)),
            "frames": int(self.frames_I.sum()),
            "rows_per_epoch": fill["rows"],
            "token_fill": round(fill["token_fill"], 4),
            "tile_fill": round(fill["tile_fill"], 4),
        }


def check(
    meta: str,
    processor: Processor,
    budgets: packing.PackingConfig,
    *,
    decode: bool,
    render: int,
    allow_outside_root: bool = False,
) -> DataReport:
    """Checks all samples of a meta file.

    budgets: what a row holds; a sample that is larger is a problem.
    decode: also decode every picture, which finds truncated ones and takes far longer.
    render: how many samples to show as text.
    allow_outside_root: images that lie outside of their data set's root are no problem.

    Raises:
        InputError: if the meta file itself cannot be read.
    """
    problems, readers = [], []
    for dataset in sources.read_meta(meta, allow_outside_root):
        try:
            offsets, _ = sources.scan_lines(dataset.annotation, dataset.beside)
        except InputError as error:
            problems.append(str(error))
            continue
        readers.append(samples.SampleReader(dataset, offsets, processor))
        if dataset.length not in (None, len(readers[-1])):
            problems.append(
                f"{dataset.annotation} has {len(readers[-1])} samples but the meta file says {dataset.length}; "
                "see whether the file is complete and correct the length."
            )
    sizes = np.array(list(_sizes(readers, budgets, decode, problems)), np.int32).reshape(-1, 3)
    tokens_I, tiles_I, frames_I = sizes.T
    sound = np.flatnonzero(tokens_I)
    rows, rendered = None, []
    if len(sound):
        corpus = samples.Corpus(readers)
        rows = _row_statistics(corpus, tokens_I, tiles_I, budgets, problems)
        shown = sound[np.unique(np.linspace(0, len(sound) - 1, render).astype(int))] if render else []
        rendered = _rendered(corpus, shown, processor, problems)
    return DataReport(len(sizes), problems, tokens_I[sound], tiles_I[sound], frames_I[sound], rows, rendered)


def histogram(tokens_I: np.ndarray) -> str:
    """Lengths by powers of two, one line each, with bars."""
    if not len(tokens_I):
        return "no samples"
    powers = np.ceil(np.log2(tokens_I)).astype(int)
    counts = np.bincount(powers)
    width = len(f"{1 << (len(counts) - 1)}")
    return "\n".join(
        f"<= {1 << power:>{width}} tokens: {count:>8} {'#' * round(_BAR * count / np.max(counts))}"
        for power, count in enumerate(counts)
        if power >= powers.min()
    )


def render_sample(sample: Sample, processor: Processor) -> str:
    """A sample as text: supervised parts between >>> and <<<, runs of image tokens counted."""
    context, parts = processor.tokenizer.image_context, []
    marked = zip(sample.tokens_T.tolist(), sample.supervised_T.tolist(), strict=True)
    for (supervised, pixels), run in itertools.groupby(marked, key=lambda pair: (pair[1], pair[0] == context)):
        tokens = [token for token, _ in run]
        text = processor.tokenizer.decode(tokens[:1] if pixels else tokens, skip_special=False)
        text = f"{text} x {len(tokens)}" if pixels else text
        parts.append(f">>>{text}<<<" if supervised else text)
    return f"{sample.name} ({len(sample.tokens_T)} tokens, {len(sample.tiles_GHWC)} tiles)\n{''.join(parts)}"


def _sizes(
    readers: Sequence[samples.SampleReader], budgets: packing.PackingConfig, decode: bool, problems: list[str]
) -> Iterator[tuple[int, int, int]]:
    """(tokens, tiles, frames) of every sample; zeros for those that it adds to `problems`."""
    logged, total = time.monotonic(), sum(map(len, readers))
    numbered = ((reader, index) for reader in readers for index in range(len(reader)))
    for done, (reader, index) in enumerate(numbered):
        if time.monotonic() - logged > _LOG_SECONDS:
            logged = time.monotonic()
            _LOG.info("checked %d of %d samples, %d problems", done, total, len(problems))
        try:
            tokens, tiles = _size(reader, index, budgets, decode)
            yield tokens, tiles, tiles if reader.record(index).footage is not None else 0
        except InputError as error:
            problems.append(str(error))
            yield 0, 0, 0


def _size(reader: samples.SampleReader, index: int, budgets: packing.PackingConfig, decode: bool) -> tuple[int, int]:
    noted = reader.measure(index)
    real = noted
    if decode and noted[1]:
        sample = reader.load(index, np.random.default_rng(0))
        real = len(sample.tokens_T), len(sample.tiles_GHWC)
    elif noted[1]:
        real = reader.measure(index, trust_notes=False)
    if real != noted:
        raise InputError(
            f"{reader.name(index)} has {real[1]} tiles but the width and height that it notes make {noted[1]}; "
            "correct or remove them."
        )
    if real[0] > budgets.token_budget or real[1] > budgets.tile_budget:
        raise InputError(
            f"{reader.name(index)} has {real[0]} tokens and {real[1]} tiles, over the row's budget of "
            f"{budgets.token_budget} tokens and {budgets.tile_budget} tiles; raise the budget or leave it out."
        )
    return real


def _row_statistics(
    corpus: samples.Corpus,
    tokens_I: np.ndarray,
    tiles_I: np.ndarray,
    budgets: packing.PackingConfig,
    problems: list[str],
) -> packing.FillStatistics | None:
    try:
        mixture = corpus.mixture()
        rows = order.RowPlan(mixture[tokens_I[mixture] > 0], tokens_I, tiles_I, budgets, pack=True, seed=0)
    except InputError as error:
        problems.append(str(error))
        return None
    return rows.statistics()


def _rendered(corpus: samples.Corpus, numbers: Iterable[int], processor: Processor, problems: list[str]) -> list[str]:
    rendered = []
    for number in numbers:
        try:
            rendered.append(render_sample(corpus.load(number, np.random.default_rng(0)), processor))
        except InputError as error:
            problems.append(str(error))
    return rendered
