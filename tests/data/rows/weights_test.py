"""Loss weights against the released `len2weight`."""

import json
import pathlib

import pytest

from internvl_jax.data.rows import weights

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / "golden/losses/len2weight.json").read_text())


@pytest.mark.parametrize("weighting", weights.WEIGHTINGS)
def test_equals_the_release(weighting):
    got = [weights.token_weight(n, weighting) for n in range(len(GOLDEN[weighting]))]
    assert got == pytest.approx(GOLDEN[weighting], rel=1e-12)


def test_sample_weighting_gives_every_sample_the_same_say():
    assert [n * weights.token_weight(n, "sample") for n in (1, 3, 1009)] == pytest.approx([1.0, 1.0, 1.0])


def test_unknown_weighting():
    with pytest.raises(ValueError, match="'mean' is unknown; use one of token, sample, square"):
        weights.token_weight(3, "mean")
