"""Which samples share a row: the released greedy packer as a pure function of lengths.

A few packs stay open, those with most tiles first. A sample joins the first open pack that has room for its tokens
and tiles, or opens a new one. A pack is closed when its tokens or its tiles are full; when too many are open, the
first one is closed as it is; at the end of the stream the rest is closed in order.

Source: InternVL repository, `internvl_chat_gpt_oss/internvl/train/dataset_packed.py` (`PackedDataset`) with
`allow_overflow=False`, as all released scripts run it. There a text-only sample carries one blank tile; here it has
0 tiles unless the caller counts one, because a row's unused tiles are masked anyway.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """Budgets of a row. The released SFT runs use 32768 tokens, 96 tiles and 20 open packs."""

    token_budget: int
    tile_budget: int
    max_open: int


@dataclasses.dataclass(frozen=True)
class FillStatistics:
    """How full the rows are: shares of the token and tile budgets that real tokens and tiles take."""

    rows: int
    samples: int
    token_fill: float
    tile_fill: float


@dataclasses.dataclass(frozen=True)
class Packs:
    """Rows of sample numbers, stored flat: row r holds `samples[starts[r]:starts[r + 1]]`."""

    samples: np.ndarray  # int64 [number of samples]
    starts: np.ndarray  # int64 [rows + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.samples[self.starts[row] : self.starts[row + 1]]


def pack(sizes: Iterable[tuple[int, int]], config: PackingConfig) -> Iterator[list[int]]:
    """Packs a stream of samples, given as (tokens, tiles), in the order in which they arrive.

    Yields:
        Lists of positions in the stream, one list per row, in the order in which rows are closed.

    Raises:
        ValueError: if one sample alone exceeds a budget.
    """
    open_packs: list[tuple[int, int, list[int]]] = []  # (tokens, tiles, samples), tiles descending
    for number, (tokens, tiles) in enumerate(sizes):
        if tokens > config.token_budget or tiles > config.tile_budget:
            raise ValueError(
                f"sample {number} has {tokens} tokens and {tiles} tiles, over the row's {config.token_budget} tokens "
                f"or {config.tile_budget} tiles; leave it out or raise the budget"
            )
        tokens, tiles, samples = _join(open_packs, tokens, tiles, config)
        samples.append(number)
        if tokens == config.token_budget:
            yield samples
            continue
        place = next((k for k, other in enumerate(open_packs) if other[1] < tiles), len(open_packs))
        open_packs.insert(place, (tokens, tiles, samples))
        # Without a tile budget every pack has all of its 0 tiles; only tokens can fill it.
        while open_packs and open_packs[0][1] == config.tile_budget > 0:
            yield open_packs.pop(0)[2]
        while len(open_packs) > config.max_open:
            yield open_packs.pop(0)[2]
    for _, _, samples in open_packs:
        yield samples


def pack_lengths(samples_I: np.ndarray, tokens: np.ndarray, tiles: np.ndarray, config: PackingConfig) -> Packs:
    """Packs sample numbers `samples_I` in this order; `tokens` and `tiles` are indexed by sample number."""
    sizes = zip(tokens[samples_I].tolist(), tiles[samples_I].tolist(), strict=True)
    flat, starts = [], [0]
    for positions in pack(sizes, config):
        flat.extend(positions)
        starts.append(len(flat))
    return Packs(samples_I[np.asarray(flat, np.int64)], np.asarray(starts, np.int64))


def fill_statistics(packs: Packs, tokens: np.ndarray, tiles: np.ndarray, config: PackingConfig) -> FillStatistics:
    """How well `packs` use their budgets."""
    rows = max(len(packs), 1)
    return FillStatistics(
        rows=len(packs),
        samples=len(packs.samples),
        token_fill=float(tokens[packs.samples].sum() / (rows * config.token_budget)),
        tile_fill=float(tiles[packs.samples].sum() / (rows * max(config.tile_budget, 1))),
    )


def _join(open_packs: list, tokens: int, tiles: int, config: PackingConfig) -> tuple[int, int, list[int]]:
    """Takes the first pack with room out of `open_packs` and returns it with the sizes added; else an empty one."""
    for place, (pack_tokens, pack_tiles, samples) in enumerate(open_packs):
        if pack_tiles + tiles <= config.tile_budget and pack_tokens + tokens <= config.token_budget:
            del open_packs[place]
            return pack_tokens + tokens, pack_tiles + tiles, samples
    return tokens, tiles, []
