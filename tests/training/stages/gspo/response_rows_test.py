"""Responses in rows: however long they turn out, they fit into the rows that a run was checked to have."""

import numpy as np
import pytest

from internvl_jax.data.processor import ChatInputs
from internvl_jax.data.rows.batch import RowConfig
from internvl_jax.training.stages.gspo.response_rows import lay_out, most_rows

TOKENS, TILES, IMAGE = 61, 7, 9
CONFIG = RowConfig(TOKENS, TILES, 2, tokens_per_tile=1, image_token_id=IMAGE, weighting="token", several=True)


def rows_filled(lengths_PG, tiles_P):
    """By responses that have so many tokens with their prompts, which have so many tiles."""
    prompts, responses = [], []
    for lengths_G, tiles in zip(lengths_PG, tiles_P, strict=True):
        tokens_T = np.array([1, 1, 1, *[IMAGE] * tiles], np.int32)
        prompts.append(ChatInputs(tokens_T, np.zeros((tiles, 2, 2, 3), np.uint8), (1,) * tiles))
        responses.append([np.full(length - len(tokens_T), 2, np.int32) for length in lengths_G])
    numbers_BX = lay_out(prompts, responses, CONFIG, lengths_PG.size, 1).responses_BX
    assert sorted(numbers_BX[numbers_BX >= 0].tolist()) == list(range(lengths_PG.size))
    return int((numbers_BX >= 0).any(axis=1).sum())


def test_no_responses_fill_more_rows():
    reached = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        P, G, tiles = rng.integers([1, 1, 0], [8, 6, TILES + 1]).tolist()
        shortest = tiles + 4
        longest = int(rng.integers(shortest, 32))
        lengths_PG = longest - rng.integers(0, rng.integers(1, longest - shortest + 2), (P, G))
        tiles_P = tiles - rng.integers(0, rng.integers(1, tiles + 2), P)
        filled, most = rows_filled(lengths_PG, tiles_P), most_rows(P, G, longest, tiles, TOKENS, TILES)
        assert filled <= most, seed
        reached += filled == most
    assert reached > 100


@pytest.mark.parametrize(
    ("prompts", "group", "longest", "tiles", "expected"),
    [
        (5, 7, 20, 1, 12),  # tokens end every row, after 3 responses
        (5, 7, 20, 0, 12),
        (5, 7, 20, 4, 15),  # a row has the tiles of one prompt
        (8, 3, 12, 3, 6),  # tokens and tiles in turn: 3 + 2, 1 + 3, 3 + 2, ...
        (5, 7, 61, 7, 35),
    ],
)
def test_the_longest_responses_fill_them(prompts, group, longest, tiles, expected):
    assert most_rows(prompts, group, longest, tiles, TOKENS, TILES) == expected
    assert rows_filled(np.full((prompts, group), longest), np.full(prompts, tiles)) == expected


def test_rows_of_like_work_stand_side_by_side():
    """And rows without a response in the last micro-batches; what is placed by response is found again."""
    rng, micro_batches, rows = np.random.default_rng(0), 4, 40
    prompts = [ChatInputs(np.array([1, 1, 1], np.int32), np.zeros((0, 2, 2, 3), np.uint8), ()) for _ in range(8)]
    responses = [[np.full(length, 2, np.int32) for length in rng.integers(1, 56, 4)] for _ in prompts]
    layout = lay_out(prompts, responses, CONFIG, rows, micro_batches)
    segments_BT = layout.rows.segments_BT
    costs = np.array([sum((row_T == s).sum() ** 2 for s in range(1, row_T.max() + 1)) for row_T in segments_BT])
    costs = costs.reshape(-1, micro_batches)
    parts = -(-np.count_nonzero(costs) // len(costs))
    assert 0 < parts < micro_batches and not costs[:, parts:].any()
    assert all(costs[:, j].min() >= costs[:, j + 1].max() for j in range(micro_batches - 1))
    values = [rng.random(len(response)).astype(np.float32) for group in responses for response in group]
    for found, value in zip(layout.pick(layout.place(values)), values, strict=True):
        np.testing.assert_array_equal(found, value)
