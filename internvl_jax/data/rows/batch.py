"""What a training step takes: rows of packed samples, all of one static shape.

1. A `Sample` is one text or several about the same pictures: tokens, which of them are supervised, image tiles.
2. `assemble_row` lays texts one after another into a row of `token_budget` tokens and `tile_budget` tiles, numbers
   them as segments, restarts positions, shifts targets by one and sets loss weights. A row is a `Batch` with B = 1.
3. `stack_rows` joins rows, so that the tiles of row b are block b of `tiles_GHWC`.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from internvl_jax.data.rows import weights
from internvl_jax.data.rows.order import arrange
from internvl_jax.errors import InputError

Rows = TypeVar("Rows")


class Sample(NamedTuple):
    """One encoded sample; `name` says where it came from and is used in messages only."""

    name: str
    tokens_T: np.ndarray  # int32, the tokens of all texts one after the other
    supervised_T: np.ndarray  # bool: the loss asks for this token
    tiles_GHWC: np.ndarray  # uint8 [G, H, W, 3], in the order of the images in each text; G = 0 without images
    starts: tuple[int, ...] = (0,)  # where each text begins; every text shows all tiles
    number: int = -1  # the sample's number in its data
    images: tuple[int, ...] = ()  # how many tiles each picture of a text has


MIN_TEXT = 4  # tokens of the shortest text: what a chat template puts around nothing is longer


class Batch(NamedTuple):
    """A training batch; with T the token budget and G = B x (tile budget).

    Where samples have several texts (see `RowConfig.several`), X = T // MIN_TEXT texts and J slots a row.
    """

    tokens_BT: np.ndarray  # int32, 0 in padding
    targets_BT: np.ndarray  # int32, the next token of the same sample, 0 at a sample's last token and in padding
    weights_BT: np.ndarray  # float32, loss weight of predicting targets_BT
    segments_BT: np.ndarray  # int32, 1, 2, ... per text of the row; 0 in padding
    positions_BT: np.ndarray  # int32, restarts at 0 with every text; 0 in padding
    tiles_GHWC: np.ndarray  # uint8 RGB; row b owns block b, real tiles first
    tile_mask_G: np.ndarray  # bool, False in padding
    slots_BJ: np.ndarray | None = None  # int32, which of the row's tiles feeds block j of image tokens; -1: none
    samples_BX: np.ndarray | None = None  # int32, the number of the sample of segment s, at s - 1; -1: none

    @property
    def rows(self) -> "Batch":
        """Itself: batches that hold more have their rows under this name."""
        return self

    @property
    def texts(self) -> "Batch":
        """Itself: what the trained model reads, of any batch."""
        return self


@dataclasses.dataclass(frozen=True)
class RowConfig:
    """The static shape of a row and how it is checked and weighted."""

    token_budget: int
    tile_budget: int
    tile_size: int  # pixels
    tokens_per_tile: int
    image_token_id: int
    weighting: str  # one of weights.WEIGHTINGS
    several: bool = False  # samples have several texts, which share their tiles

    def __post_init__(self) -> None:
        weights.token_weight(1, self.weighting)
        if self.image_token_id == 0:
            raise ValueError("image_token_id is 0, the token of padding; give the image context token another id")


def assemble_row(samples: Sequence[Sample], config: RowConfig) -> Batch:
    """One row that holds `samples` one after another.

    Targets are shifted inside each sample. The release shifts over the whole packed row, so there a supervised first
    token of a sample is predicted from the last position of the sample before it; here it is not predicted at all.
    The weight counts a sample's supervised tokens before the shift, as the release does.

    Returns:
        `Batch` with B = 1: `[1, token_budget]` arrays and `tile_budget` tiles.

    Raises:
        InputError: if a sample's image tokens do not fit its tiles.
        ValueError: if the samples exceed a budget (packing makes sure that they do not).
    """
    row = _empty_row(config)
    start = tile_start = segment = slot = 0
    for sample in samples:
        _check_sample(sample, config)
        end, tile_end = start + len(sample.tokens_T), tile_start + len(sample.tiles_GHWC)
        if end > config.token_budget or tile_end > config.tile_budget:
            raise ValueError(
                f"{sample.name} ends at token {end} and tile {tile_end} of a row of "
                f"{config.token_budget} tokens and {config.tile_budget} tiles; pack fewer samples into the row"
            )
        row.tiles_GHWC[tile_start:tile_end] = sample.tiles_GHWC
        for first, last in zip(sample.starts, (*sample.starts[1:], len(sample.tokens_T)), strict=True):
            segment += 1
            _lay(row, start + first, sample.tokens_T[first:last], sample.supervised_T[first:last], segment, config)
            if config.several:
                row.slots_BJ[0, slot : slot + tile_end - tile_start] = np.arange(tile_start, tile_end)
                row.samples_BX[0, segment - 1] = sample.number
                slot += tile_end - tile_start
        start, tile_start = end, tile_end
    row.tile_mask_G[:tile_start] = True
    return row


def _lay(
    row: Batch, start: int, tokens_T: np.ndarray, supervised_T: np.ndarray, segment: int, config: RowConfig
) -> None:
    """Writes one text into the row."""
    end = start + len(tokens_T)
    weight = weights.token_weight(int(supervised_T.sum()), config.weighting)
    row.tokens_BT[0, start:end] = tokens_T
    row.targets_BT[0, start : end - 1] = tokens_T[1:]
    row.weights_BT[0, start : end - 1] = weight * supervised_T[1:]
    row.segments_BT[0, start:end] = segment
    row.positions_BT[0, start:end] = np.arange(end - start)


def fill_rows(samples: Sequence[Sample], config: RowConfig, rows: int, micro_batches: int) -> Batch:
    """All samples in `rows` rows, filled one after the other, in the order of `row_order`.

    Raises:
        InputError: as `assemble_row`, or if they fill more rows.
    """
    counts = next_fit([(len(sample.tokens_T), len(sample.tiles_GHWC)) for sample in samples], config)
    if len(counts) > rows:
        raise InputError(
            f"{len(samples)} samples fill {len(counts)} rows of {config.token_budget} tokens and {config.tile_budget} "
            f"tiles, but a batch has {rows}; give it more rows"
        )
    ends = np.cumsum([0, *counts])
    contents = [samples[start:end] for start, end in itertools.pairwise(ends)]
    order = row_order(contents, rows, micro_batches)
    contents += [[]] * (rows - len(contents))
    return stack_rows([assemble_row(contents[number], config) for number in order])


def next_fit(sizes: Iterable[tuple[int, int]], config: RowConfig) -> list[int]:
    """How many samples of these (tokens, tiles), in their order, each row takes."""
    counts, tokens, tiles = [], config.token_budget, 0
    for more_tokens, more_tiles in sizes:
        tokens, tiles = tokens + more_tokens, tiles + more_tiles
        if tokens > config.token_budget or tiles > config.tile_budget:
            counts.append(0)
            tokens, tiles = more_tokens, more_tiles
        counts[-1] += 1
    return counts


def row_order(contents: Sequence[Sequence[Sample]], rows: int, micro_batches: int) -> np.ndarray:
    """For every row of a batch which of the contents it has, int64 `[rows]`; from their number on: none.

    Devices that work side by side have like work (`order.arrange`). What costs most is in the first micro-batches, so
    that rows without any are those of the last ones, which a step leaves out.
    """
    costs = np.zeros(rows, np.int64)
    costs[: len(contents)] = [sum(map(_cost, samples)) for samples in contents]
    return arrange(-costs, micro_batches)


def _cost(sample: Sample) -> int:
    """What attention costs in a sample: the sum of its texts' squared lengths."""
    return int(np.sum(np.square(np.diff([*sample.starts, len(sample.tokens_T)]))))


def stack_rows(rows: Sequence[Rows]) -> Rows:
    """Joins rows (or batches) along B; the tiles of row b become block b. Rows may be any tuples of arrays."""
    return _joined(rows)


def _joined(parts: Sequence[Any]) -> Any:
    """`stack_rows` of what rows are made of: None, arrays, and tuples of them."""
    if parts[0] is None:
        return None
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return type(parts[0])(*map(_joined, zip(*parts, strict=True)))


def _empty_row(config: RowConfig) -> Batch:
    shape, side = (1, config.token_budget), config.tile_size
    return Batch(
        tokens_BT=np.zeros(shape, np.int32),
        targets_BT=np.zeros(shape, np.int32),
        weights_BT=np.zeros(shape, np.float32),
        segments_BT=np.zeros(shape, np.int32),
        positions_BT=np.zeros(shape, np.int32),
        tiles_GHWC=np.zeros((config.tile_budget, side, side, 3), np.uint8),
        tile_mask_G=np.zeros(config.tile_budget, bool),
        slots_BJ=np.full((1, config.token_budget // config.tokens_per_tile), -1, np.int32) if config.several else None,
        samples_BX=np.full((1, config.token_budget // MIN_TEXT), -1, np.int32) if config.several else None,
    )


def _check_sample(sample: Sample, config: RowConfig) -> None:
    found = int(np.count_nonzero(sample.tokens_T == config.image_token_id))
    expected = config.tokens_per_tile * len(sample.tiles_GHWC) * len(sample.starts)
    if found != expected:
        raise InputError(
            f"{sample.name} has {found} image tokens but {len(sample.tiles_GHWC)} tiles of {config.tokens_per_tile}, "
            f"which need {expected}; check its <image> placeholders and the tile options"
        )
    if config.several and min(np.diff([*sample.starts, len(sample.tokens_T)])) < MIN_TEXT:
        raise InputError(f"{sample.name} has a text of less than {MIN_TEXT} tokens; leave the sample out")
