"""The packer against recorded packs of the released `PackedDataset`, and what any packer promises.

Covered are the runs with allow_overflow=False (plain, strict mode, two datasets): official scripts run no others. In
the release overflow splits an over-long pack by cutting samples apart; here no sample is ever cut. Strict mode differs
only by padding every row to the full budgets, which is what every row here looks like.
"""

import json
import pathlib

import numpy as np
import pytest

from internvl_jax.data.rows import batch, packing

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / "golden/packing/packing.json").read_text())
RUNS = {run["name"]: run for run in GOLDEN["runs"]}


def arrivals(run):
    return [GOLDEN["datasets"][name][index] for name, index in run["arrival"]]


def packs_of(run):
    # A text-only sample of the release has one blank tile, so it counts as one here too.
    sizes = [(len(s["input_ids"]), len(s["tile_ids"])) for s in arrivals(run)]
    config = packing.PackingConfig(run["max_packed_tokens"], run["num_images_expected"], run["max_buffer_size"])
    return list(packing.pack(sizes, config))


@pytest.mark.parametrize("name", RUNS)
def test_packs_equal_the_release(name):
    run, samples = RUNS[name], arrivals(RUNS[name])
    got = [[t for k in pack for t in samples[k]["input_ids"]] for pack in packs_of(run)]
    assert got == [pack["input_ids"] for pack in run["packs"]]
    tiles = [[t for k in pack for t in samples[k]["tile_ids"]] for pack in packs_of(run)]
    # strict mode pads with tile 0
    assert tiles == [[t for t in pack["tile_ids"] if t] for pack in run["packs"]]


@pytest.mark.parametrize("weighting", ["token", "sample", "square"])
def test_rows_equal_the_release(weighting):
    """Segments, positions and weights of whole rows; weights shifted by one, a sample's first token left out."""
    run = RUNS["one_dataset_strict"]
    config = batch.RowConfig(
        run["max_packed_tokens"], run["num_images_expected"], 2, 3, GOLDEN["img_context_token_id"], weighting
    )
    samples = arrivals(run)
    for pack, expected in zip(packs_of(run), run["packs"], strict=True):
        row = batch.assemble_row([as_sample(samples[k]) for k in pack], config)
        length = len(expected["input_ids"])
        assert (row.segments_BT[0, :length] - 1).tolist() == expected["data_index"]
        assert row.positions_BT[0, :length].tolist() == expected["position_ids"]
        weights = np.array(expected[f"loss_weight_{weighting}"][1:] + [0.0])
        weights[np.flatnonzero(np.diff(expected["data_index"] + [-1]))] = 0.0
        np.testing.assert_allclose(row.weights_BT[0], weights[: config.token_budget], atol=1e-6)


def as_sample(sample):
    labels = np.array(sample["labels"])
    tiles = sum(sample["image_flags"])  # the blank tile of a text-only sample is flagged 0 and is not needed here
    return batch.Sample("golden", np.array(sample["input_ids"]), labels != -100, np.ones((tiles, 2, 2, 3), np.uint8))


def random_sizes(n, max_tokens, max_tiles):
    rng = np.random.default_rng(3)
    return rng.integers(1, max_tokens + 1, n), rng.integers(0, max_tiles + 1, n)


@pytest.mark.parametrize("tile_budget", [0, 13])
def test_every_sample_once_and_no_budget_exceeded(tile_budget):
    tokens, tiles = random_sizes(997, 101, tile_budget)
    config = packing.PackingConfig(token_budget=101, tile_budget=tile_budget, max_open=7)
    order = np.random.default_rng(5).permutation(997)
    packs = packing.pack_lengths(order, tokens, tiles, config)
    assert sorted(packs.samples.tolist()) == list(range(997))
    rows = [packs[row] for row in range(len(packs))]
    assert max(tokens[row].sum() for row in rows) <= 101 and max(tiles[row].sum() for row in rows) <= tile_budget
    fill = packing.fill_statistics(packs, tokens, tiles, config)
    assert fill.rows == len(rows) and fill.samples == 997
    assert fill.token_fill == pytest.approx(np.mean([tokens[row].sum() / 101 for row in rows]))
    assert fill.token_fill > 0.75 if tile_budget == 0 else fill.token_fill > 0.6


def test_sample_over_a_budget_is_an_error():
    config = packing.PackingConfig(token_budget=11, tile_budget=3, max_open=2)
    with pytest.raises(ValueError, match="sample 1 has 12 tokens"):
        list(packing.pack([(5, 0), (12, 0)], config))
    with pytest.raises(ValueError, match="and 4 tiles"):
        list(packing.pack([(5, 4)], config))
