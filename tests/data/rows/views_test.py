"""What teacher and student see of the same samples: the same predictions, fewer image tokens, nothing by chance."""

import collections
import dataclasses

import numpy as np
import pytest

from internvl_jax.data.rows.batch import RowConfig, Sample
from internvl_jax.data.rows.pipeline import Pipeline
from internvl_jax.data.rows.views import Probes, Rates
from internvl_jax.errors import InputError
from tests.data.rows.pipeline_test import config_of

IMAGE, FULL, SHORT = 7, 4, 1
ROW = RowConfig(211, 17, 2, FULL, IMAGE, "sample")


def make_sample(seed):
    """Pictures of some tiles between texts, and an answer."""
    rng = np.random.default_rng(seed)
    images = tuple(rng.integers(1, 4, size=rng.integers(0, 4)).tolist())
    parts = [rng.integers(10, 99, 3)]
    for count in images:
        parts += [np.full(count * FULL, IMAGE), rng.integers(10, 99, rng.integers(1, 4))]
    answer = rng.integers(10, 99, rng.integers(1, 6))
    tokens = np.concatenate([*parts, answer]).astype(np.int32)
    supervised = np.arange(len(tokens)) >= len(tokens) - len(answer)
    tiles = rng.integers(0, 255, (sum(images), 2, 2, 3)).astype(np.uint8)
    return Sample(f"sample {seed}", tokens, supervised, tiles, images=images)


def assemble(layout, samples, config=ROW, seed=0):
    rngs = [np.random.default_rng((seed, place)) for place in range(len(samples))]
    return layout.assemble(samples, rngs, config)


def check_aligned(views):
    """What must hold whatever is compressed."""
    rows, student = views.rows, views.student
    real = student.segments_BT[0] > 0
    teacher = views.teacher_BT[0]
    np.testing.assert_array_equal(student.tokens_BT[0, real], rows.tokens_BT[0, teacher[real]])
    np.testing.assert_array_equal(student.weights_BT[0, real], rows.weights_BT[0, teacher[real]])
    asked = student.weights_BT[0] > 0
    np.testing.assert_array_equal(student.targets_BT[0, asked], rows.targets_BT[0, teacher[asked]])
    assert not student.weights_BT[0, ~real].any() and not teacher[~real].any()
    slot = 0
    for segment in range(1, student.segments_BT.max() + 1):
        (at,) = np.nonzero(student.segments_BT[0] == segment)
        assert len(set(rows.segments_BT[0, teacher[at]])) == 1 and (np.diff(teacher[at]) > 0).all()
        np.testing.assert_array_equal(student.positions_BT[0, at], np.arange(len(at)))
        # Tokens that are missing are image tokens: the last ones of compressed tiles.
        left = np.setdiff1d(np.nonzero(rows.segments_BT[0] == rows.segments_BT[0, teacher[at[0]]])[0], teacher[at])
        assert (rows.tokens_BT[0, left] == IMAGE).all()
        count = np.sum(student.tokens_BT[0, at] == IMAGE)
        while count:
            assert student.slots_BJ[0, slot] >= 0
            count -= SHORT if views.compress_BJ[0, slot] else FULL
            slot += 1
        assert count == 0
    assert (student.slots_BJ[0, slot:] == -1).all()


@pytest.mark.parametrize("seed", range(12))
def test_a_rate_is_a_pictures(seed):
    samples = [make_sample(seed + 100 * k) for k in range(3)]
    views = assemble(Rates(SHORT), samples, seed=seed)
    check_aligned(views)
    again = assemble(Rates(SHORT), samples, seed=seed)
    np.testing.assert_array_equal(views.compress_BJ, again.compress_BJ)
    rates = views.compress_BJ[0, : sum(len(sample.tiles_GHWC) for sample in samples)].tolist()
    for sample in samples:
        for count in sample.images:
            assert len({rates.pop(0) for _ in range(count)}) == 1
    assert (views.measured_G2 == -1).all()
    assert views.student.segments_BT.max() == 3


@pytest.mark.parametrize("of", ["picture", "tile"])
def test_both_rates_are_drawn_equally_often(of):
    sample = next(sample for sample in map(make_sample, range(50)) if len(sample.images) == 1)
    drawn = [assemble(Rates(SHORT, of), [sample], seed=seed).compress_BJ[0, 0] for seed in range(400)]
    assert 160 < sum(drawn) < 240


def test_a_rate_may_be_a_tiles():
    """Every combination of a picture's tiles occurs, and every number of compressed ones equally often."""
    sample = next(sample for sample in map(make_sample, range(50)) if sample.images and sample.images[0] == 3)
    views = [assemble(Rates(SHORT, "tile"), [sample], seed=seed) for seed in range(400)]
    check_aligned(views[0])
    drawn = collections.Counter(tuple(each.compress_BJ[0, :3].tolist()) for each in views)
    assert len(drawn) == 8
    counts = collections.Counter(sum(each.compress_BJ[0, :3].tolist()) for each in views)
    assert all(70 < counts[number] < 130 for number in range(4))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("probe", "most"), [("one", 0), ("one", 2), ("all", 0), ("all", 3)])
def test_probes_compress_a_tile_at_a_time(seed, probe, most):
    samples = [sample for sample in map(make_sample, range(seed, seed + 20)) if len(sample.images)][:2]
    layout = Probes(SHORT, probe, most)
    tiles = np.array([len(sample.tiles_GHWC) for sample in samples])
    tokens = np.array([len(sample.tokens_T) for sample in samples])
    needed = layout.lengths(tokens, tiles)
    config = dataclasses.replace(ROW, token_budget=int(needed.sum()))
    views = assemble(layout, samples, config)
    check_aligned(views)
    assert views.rows.tokens_BT.shape[1] == config.token_budget // 2
    student, first = views.student, 0
    for count in tiles:
        measured = views.measured_G2[first : first + count]
        probed = np.flatnonzero(measured[:, 0] >= 0)
        assert len(probed) == (min(count, most) if most else count)
        full = measured[probed[0], 1]
        for g in probed:
            compressed, beside = measured[g]
            assert beside == full and not compressed_tiles(views, full)
            expected = {first + g} if probe == "one" else {first + int(p) for p in probed}
            assert compressed_tiles(views, compressed) == expected
        first += count
    assert student.segments_BT.max() == sum(1 + (min(count, most or count) if probe == "one" else 1) for count in tiles)


def compressed_tiles(views, text):
    """The tiles of the row that a text of the student, counted from 0, shows compressed."""
    counts = [
        np.sum(views.student.tokens_BT[0][views.student.segments_BT[0] == segment] == IMAGE)
        for segment in range(1, text + 2)
    ]
    sizes = np.where(views.compress_BJ[0], SHORT, FULL)
    ends = np.cumsum(sizes)
    start, stop = sum(counts[:-1]), sum(counts)
    slots = np.flatnonzero((ends > start) & (ends <= stop))
    return {int(views.student.slots_BJ[0, j]) for j in slots if views.compress_BJ[0, j]}


def test_texts_without_pictures_measure_nothing():
    layout = Probes(SHORT, "one", 0)
    np.testing.assert_array_equal(layout.lengths(np.array([9, 9]), np.array([0, 1])), [0, 18])


def test_a_row_is_the_same_whenever_it_is_asked_for(tiny, processor):
    """By number, in any order, in workers; and another row draws other rates."""
    tiny.write_meta(pairs=tiny.entries["pairs"])
    made = Pipeline(config_of(tiny, seed=3), processor, Rates(1))
    first = [made.row(number)[0] for number in range(6)]
    batches = Pipeline(config_of(tiny, seed=3, threads=2), processor, Rates(1)).batches(2)
    for number in range(0, 6, 2):
        batch = next(batches)
        for place in range(2):
            np.testing.assert_array_equal(batch.compress_BJ[place], first[number + place].compress_BJ[0])
            np.testing.assert_array_equal(batch.teacher_BT[place], first[number + place].teacher_BT[0])
    batches.close()
    assert len({row.compress_BJ.tobytes() for row in first}) > 1


def test_samples_that_fit_alone_but_not_with_their_probes_are_named(tiny, processor):
    with pytest.raises(InputError, match="over the row's budget of 199 tokens"):
        Pipeline(config_of(tiny), processor, Probes(1, "one", 0))
    made = Pipeline(config_of(tiny, over_long="drop"), processor, Probes(1, "one", 0))
    assert len(made.dropped) and made.row(0)[0].student.tokens_BT.shape == (1, 199)
