"""Rollout batches as data."""

import logging

import numpy as np
import pytest

from internvl_jax.grading import Score
from internvl_jax.training.stages.gspo import rounds


def group(*rewards):
    token = np.zeros(1, np.int32)
    scores = [Score(reward, reward, 1.0) for reward in rewards]
    count = len(rewards)
    return rounds.ResponseGroup(0, [token] * count, [token] * count, ["x"] * count, scores, [True] * count)


@pytest.mark.parametrize(("last", "warned"), [((0, 0), True), ((0, 1), False)])
def test_a_batch_without_any_advantage_is_told(caplog, last, warned):
    groups = [group(1, 1), group(*last)]
    made = rounds.Round(7, 2, groups, rounds.figures(groups))
    with caplog.at_level(logging.WARNING):
        rounds.warn_of_equal_rewards(made)
    assert ("rollout batch 7: in no group do rewards differ (their mean is 0.50)" in caplog.text) == warned
