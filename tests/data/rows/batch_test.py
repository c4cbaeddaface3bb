"""Rows: what is where after packing, and that no target, weight or tile crosses a border."""

import dataclasses

import numpy as np
import pytest

from internvl_jax.data.rows import batch
from internvl_jax.errors import InputError

IMAGE = 91
CONFIG = batch.RowConfig(
    token_budget=19, tile_budget=5, tile_size=2, tokens_per_tile=3, image_token_id=IMAGE, weighting="square"
)


def sample(name, tokens, supervised, tiles=0, shade=7):
    return batch.Sample(
        name,
        np.asarray(tokens, np.int32),
        np.asarray(supervised, bool),
        np.full((tiles, 2, 2, 3), shade, np.uint8),
    )


TEXT = sample("text", [11, 12, 13, 14], [1, 1, 1, 1])
PICTURE = sample("picture", [21, IMAGE, IMAGE, IMAGE, 22, 23], [0, 0, 0, 0, 1, 1], tiles=1)


def test_row_is_the_samples_one_after_another():
    row = batch.assemble_row([TEXT, PICTURE], CONFIG)
    padding = [0] * 9
    assert row.tokens_BT.tolist() == [[11, 12, 13, 14, 21, IMAGE, IMAGE, IMAGE, 22, 23, *padding]]
    assert row.targets_BT.tolist() == [[12, 13, 14, 0, IMAGE, IMAGE, IMAGE, 22, 23, 0, *padding]]
    assert row.segments_BT.tolist() == [[1] * 4 + [2] * 6 + padding]
    assert row.positions_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, *padding]]
    assert row.tile_mask_G.tolist() == [True, False, False, False, False]
    assert row.tiles_GHWC[0].min() == 7 and row.tiles_GHWC[1:].max() == 0
    dtypes = [None if array is None else array.dtype for array in row]
    assert dtypes == ["int32", "int32", "float32", "int32", "int32", "uint8", "bool", None, None]


def test_first_token_of_a_sample_is_never_a_target():
    """The release predicts it from the sample before; here every weight belongs to a target of the same segment."""
    row = batch.assemble_row([PICTURE, TEXT], CONFIG)
    # TEXT has 4 supervised tokens, so its weight is 1/2, for the 3 that have a predecessor in the sample.
    assert row.weights_BT[0, 6:].tolist() == [0.5, 0.5, 0.5, 0.0] + [0.0] * 9
    np.testing.assert_allclose(row.weights_BT[0, :6], [0, 0, 0, 0.5**0.5, 0.5**0.5, 0], rtol=1e-6)


def test_unsupervised_sample_weighs_nothing_and_is_finite():
    row = batch.assemble_row([sample("silent", [11, 12, 13], [0, 0, 0])], CONFIG)
    assert row.weights_BT.sum() == 0 and np.isfinite(row.weights_BT).all()


def test_empty_row_is_padding():
    row = batch.assemble_row([], CONFIG)
    assert not row.segments_BT.any() and not row.weights_BT.any() and not row.tile_mask_G.any()


def test_tiles_of_row_b_are_block_b():
    rows = [
        batch.assemble_row([sample("p", [IMAGE] * 3, [0, 0, 0], tiles=1, shade=shade), TEXT], CONFIG)
        for shade in (3, 5, 11)
    ]
    stacked = batch.stack_rows(rows)
    assert stacked.tokens_BT.shape == (3, 19) and stacked.tiles_GHWC.shape == (15, 2, 2, 3)
    assert stacked.tiles_GHWC[::5, 0, 0, 0].tolist() == [3, 5, 11]
    assert stacked.tile_mask_G.reshape(3, 5).tolist() == [[True, False, False, False, False]] * 3


def test_image_tokens_must_fit_the_tiles():
    wrong = sample("a.jsonl:7", [IMAGE, IMAGE, 4], [0, 0, 1], tiles=1)
    with pytest.raises(InputError, match=r"a\.jsonl:7 has 2 image tokens but 1 tiles of 3, which need 3"):
        batch.assemble_row([TEXT, wrong], CONFIG)


def test_row_over_its_budget():
    with pytest.raises(ValueError, match="text ends at token 20 and tile 0 of a row of 19 tokens"):
        batch.assemble_row([TEXT] * 5, CONFIG)


@pytest.mark.parametrize(("filled", "rows", "micro_batches"), [(40, 64, 8), (64, 64, 8), (13, 16, 1), (9, 16, 4)])
def test_filled_rows_have_like_work_side_by_side(filled, rows, micro_batches):
    """Several texts of a sample cost what they cost apart. What is empty is in the last micro-batches, as few as can
    be; and the devices of a micro-batch wait less for the fullest of them than with rows as they come.
    """
    devices, row = 4, dataclasses.replace(CONFIG, token_budget=64, tile_budget=2, several=True)
    rng, samples = np.random.default_rng(filled), []
    for number in range(filled):
        texts = [4 * int(length) for length in rng.multinomial(13, [1 / 3] * 3) + 1]
        tokens = np.full(sum(texts), 5, np.int32)
        starts = tuple(np.cumsum([0, *texts[:-1]]).tolist())
        samples.append(batch.Sample(str(number), tokens, tokens > 0, np.zeros((0, 2, 2, 3), np.uint8), starts, number))
    made = batch.fill_rows(samples, row, rows, micro_batches)
    numbers = [set(row_X[row_X >= 0].tolist()) for row_X in made.samples_BX]
    assert sorted(number for each in numbers for number in each) == list(range(filled))
    whole = np.array([sum((made.segments_BT[b] == s).sum() ** 2 for s in range(1, 4)) for b in range(rows)])
    costs = whole.reshape(-1, micro_batches)
    parts = -(-filled // (rows // micro_batches))
    assert (costs[:, :parts] > 0).any(axis=0).all() and not costs[:, parts:].any()
    assert (costs.sum(axis=0)[:-1] >= costs.sum(axis=0)[1:]).all()
    waiting = lambda costs: costs.reshape(devices, -1, micro_batches).sum(axis=1).max(axis=0).sum()
    plain = np.zeros(rows, int)
    plain[:filled] = [np.sum(np.diff([*sample.starts, len(sample.tokens_T)]) ** 2) for sample in samples]
    assert waiting(whole) < waiting(plain.reshape(micro_batches, -1).T.reshape(-1))
