"""Rollout batches as data."""

import logging

import numpy as np
import pytest

from internvl_jax.data.reading.prompts import Prompt
from internvl_jax.data.reading.sources import Dataset
from internvl_jax.errors import InputError
from internvl_jax.grading import Score
from internvl_jax.inference import Rollout
from internvl_jax.training.stages.gspo import rounds
from internvl_jax.training.stages.gspo.partial_groups import PartialGroup


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


@pytest.mark.parametrize("routes", [False, True])
def test_what_a_batch_left_comes_back(tmp_path, routes):
    rng = np.random.default_rng(0)

    def response(count, finished):
        experts = rng.integers(0, 8, (count + 3, 2, 2)).astype(np.int16) if routes and finished else None
        return Rollout(np.arange(count, dtype=np.int32), rng.normal(size=count).astype(np.float32), finished, experts)

    left = [
        PartialGroup(7, 2, 1, [response(3, True), response(5, False)]),
        PartialGroup(9, 0, 2),
        PartialGroup(10, 1, 2, [response(1, False), response(2, True)]),
    ]
    prompt = Prompt("p:1", None, "q", "a", "", (), Dataset("d", "", "p", False, None, 1, None))
    made = group(1, 0)
    made.routes = [np.zeros((1, 2, 2), np.int16)] * 2 if routes else [None, None]
    rounds.write_round(tmp_path, rounds.Round(3, 11, [made], {}, left), [prompt], 2, weighed=True)
    found = rounds.read_round(tmp_path, 3)
    assert [(each.place, each.number, each.begun) for each in found.left] == [(7, 2, 1), (9, 0, 2), (10, 1, 2)]
    assert [each.stale for each in found.left] == [[3, 5], [], [1, 2]] and len(found.groups[0].sampled) == 2
    for ours, theirs in zip(found.left, left, strict=True):
        for one, other in zip(ours.responses, theirs.responses, strict=True):
            assert one.finished == other.finished
            for array, wanted in zip((one.tokens, one.logprobs, one.routes), (*other[:2], other.routes), strict=True):
                np.testing.assert_array_equal(array, wanted)
                assert array is None or array.dtype == wanted.dtype
    with np.load(tmp_path / "000003.npz") as file:
        arrays = dict(file)
    for change in ({"left_tokens": arrays["left_tokens"][1:]}, {"left_lengths": -arrays["left_lengths"]}):
        np.savez(tmp_path / "000003.npz", **arrays | change)
        with pytest.raises(InputError, match="or goes on with what it left"):
            rounds.read_round(tmp_path, 3)
    np.savez(tmp_path / "000003.npz", **{name: array for name, array in arrays.items() if name != "left_sampled"})
    with pytest.raises(InputError, match="it has no array 'left_sampled'"):
        rounds.read_round(tmp_path, 3)
