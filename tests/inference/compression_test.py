"""The released rule, on recorded probabilities and by hand, and what it does to a prompt."""

import dataclasses

import numpy as np
import pytest

from internvl_jax.errors import InputError
from internvl_jax.evaluation.parity import read_case
from internvl_jax.inference.compression import Thresholds, feature_index, kept, picture_tokens, quantile
from internvl_jax.models import FlashConfig

FLASH = FlashConfig(relative_threshold=0.25, absolute_threshold=0.35, heads=3, dropout=0.1)


@pytest.fixture
def flash(config):
    """16 patches a tile: four tokens, or one."""
    return dataclasses.replace(config, flash=FLASH, image_token_id=300)


def test_recorded_decisions(golden):
    inputs, outputs, _ = read_case(golden / "flash_qwen3_github")
    probability_G = outputs["gate_probs"][:, 0]
    for k, (relative, absolute) in enumerate(inputs["thresholds64"].tolist()):
        assert quantile(probability_G, relative) == outputs["quantiles"][k]
        decision = Thresholds(relative, absolute).decide(probability_G, FLASH)
        assert decision.tolist() == outputs["decisions"][k].tolist()


@pytest.mark.parametrize(
    ("relative", "absolute", "wanted"),
    [
        (None, None, [False, True, False, True]),
        (0.0, 0.0, [False, True, True, True]),  # the least one is spared
        (0.0, None, [False, True, False, True]),
        (None, 0.8, [False, False, False, True]),
        (1.0, 0.0, [False] * 4),
        (1.0, None, [False] * 4),
        (0.0, 1.0, [False] * 4),
    ],
)
def test_a_request_replaces_either_threshold(relative, absolute, wanted):
    probability_G = np.array([0.1, 0.7, 0.2, 0.9], np.float32)
    assert Thresholds(relative, absolute).decide(probability_G, FLASH).tolist() == wanted


def test_a_single_tile_and_none():
    assert Thresholds(0.0, 0.0).decide(np.array([0.99], np.float32), FLASH).tolist() == [False]
    assert Thresholds().decide(np.zeros(0, np.float32), FLASH).shape == (0,)


def test_a_compressed_tile_keeps_its_first_tokens(flash):
    tokens_T = np.array([7, 300, 300, 300, 300, 8, *[300] * 8, 9])
    kept_T = kept(tokens_T, np.array([False, True, False]), flash)
    assert kept_T.astype(int).tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1]
    assert kept(tokens_T, np.ones(3, bool), flash).sum() == 3 + 3
    assert kept(np.array([7, 8]), np.zeros(0, bool), flash).all()


def test_places_in_the_pool(flash):
    index = feature_index(np.array([2, 0, 2]), np.array([False, True, True]), flash)
    assert index.tolist() == [10, 11, 12, 13, 4, 14] and index.dtype == np.int32
    plain = dataclasses.replace(flash, flash=None)
    assert feature_index(np.array([1, 0]), np.zeros(2, bool), plain).tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert feature_index(np.zeros(0, int), np.zeros(0, bool), plain).tolist() == []


def test_tokens_of_every_picture():
    assert picture_tokens(np.array([5, 5, 1, 5, 2, 3, 5, 5, 5]), 5) == (2, 1, 3)
    assert picture_tokens(np.array([1, 2]), 5) == ()


@pytest.mark.parametrize("fields", [{"relative": 1.1}, {"relative": -0.1}, {"absolute": float("nan")}, {"absolute": 2}])
def test_thresholds_are_shares(fields):
    with pytest.raises(InputError, match=rf"^thresholds\.{next(iter(fields))} is .*; it must be a number from 0 to 1"):
        Thresholds(**fields)
