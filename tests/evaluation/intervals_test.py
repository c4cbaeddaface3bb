"""Intervals of figures that are no shares of questions; those of every suite are in `suites/recorded_test.py`."""

import numpy as np
import pytest

from internvl_jax.evaluation.intervals import clusters, headline_interval, mean_interval, wilson


def ratio(sums):
    return 100 * sums[""][0] / sums[""][1]


def f1(sums):
    return 200 * sums[""][0] / sums[""][1]


def test_a_share_has_nearly_wilsons_own():
    hits = [1] * 30 + [0] * 70
    found = headline_interval([("", (hit, 1)) for hit in hits], ratio)
    assert found == pytest.approx(mean_interval(hits), abs=0.1)
    assert mean_interval(hits, 1000) == pytest.approx([1000 * side for side in wilson(30, 100)])


@pytest.mark.parametrize("hits", [[1] * 20, [0] * 20, [1], [0]])
def test_where_nothing_varies_few_questions_say_little(hits):
    low, high = headline_interval([("", (hit, 1)) for hit in hits], ratio)
    assert (low, high) == pytest.approx(mean_interval(hits)) and high - low > 10


def test_it_is_as_wide_as_many_draws_say():
    """F1 of questions that come in fours, which are right or wrong together more often than alone."""
    rng = np.random.default_rng(0)
    ease = rng.beta(1, 1, 200)
    groups = [(number, hit, 1 + rng.integers(2)) for number in range(200) for hit in rng.random(4) < ease[number]]
    units = clusters((number, (float(hit), float(of))) for number, hit, of in groups)
    low, high = headline_interval([("", unit) for unit in units], f1, 200)
    terms = np.array(units)
    drawn = [f1({"": terms[rng.integers(0, 200, 200)].sum(0)}) for _ in range(2000)]
    assert (high - low) == pytest.approx(np.subtract(*np.percentile(drawn, [97.5, 2.5])), rel=0.1)
    alone = headline_interval([("", (float(hit), float(of))) for _, hit, of in groups], f1, 200)
    assert alone[1] - alone[0] < 0.9 * (high - low)


def test_strata_have_their_numbers():
    """The mean of two splits, one of them small: its questions weigh more."""
    split = lambda name, right, of: [(name, (float(number < right), 1.0)) for number in range(of)]
    mean = lambda sums: 50 * sum(hits / number for hits, number in sums.values())
    low, high = headline_interval(split("a", 5, 10) + split("b", 500, 1000), mean)
    assert low < 50 < high and high - low == pytest.approx(2 * 1.96 * 50 * np.hypot(0.5 / 3, 0.5 / 1000**0.5), rel=0.1)
    assert headline_interval([], mean) == (0, 100)
