"""Sampling against a plain reference, its distribution, and rows that don't see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.errors import InputError
from internvl_jax.inference.engine import sampling
from internvl_jax.inference.engine.sampling import SamplingParams

V = 53


@pytest.fixture
def logits_BV():
    return np.random.default_rng(3).normal(0, 2, (5, V)).astype(np.float32)


def kept(logits, k, p):
    """Ids that top-k, then top-p leave, one row, the slow way."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    order = order[: k or len(order)]
    weights = np.exp([float(logits[i]) for i in order])
    ids, total = set(), 0.0
    for i, weight in zip(order, weights / weights.sum(), strict=True):
        if total >= p:
            break
        ids.add(i)
        total += weight
    return ids


def test_top_k_and_top_p(logits_BV):
    k, p = [0, 3, 0, 7, V + 9], [1.0, 1.0, 0.6, 0.7, 0.9]
    got = np.asarray(sampling.keep_best(logits_BV, np.array(k), np.array(p, np.float32)))
    for b in range(5):
        ids = {i for i in range(V) if got[b, i] > -np.inf}
        assert ids == kept(logits_BV[b], k[b], p[b])
        assert all(got[b, i] == logits_BV[b, i] for i in ids)
    assert [np.isfinite(row).sum() for row in got[:2]] == [V, 3]


def test_the_best_token_always_stays(logits_BV):
    got = sampling.keep_best(logits_BV, np.zeros(5, int), np.full(5, 1e-9, np.float32))
    assert np.isfinite(got).sum(axis=1).tolist() == [1] * 5


def test_repetition_penalty(logits_BV):
    seen_BV = np.random.default_rng(4).random((5, V)) < 0.3
    penalty = np.array([1.0, 1.3, 2.0, 0.5, 1.1], np.float32)
    got = np.asarray(sampling.penalise(logits_BV, seen_BV, penalty))
    for b in range(5):
        for i in range(V):
            x = logits_BV[b, i]
            wanted = (x * penalty[b] if x < 0 else x / penalty[b]) if seen_BV[b, i] else x
            assert got[b, i] == pytest.approx(wanted, rel=1e-6)


def test_banned_tokens_and_unused_rows_get_no_chance(logits_BV):
    logits_BV[:, 11] = logits_BV[:, 50] = 99
    got = np.asarray(sampling.ban(logits_BV, 47, (11, 13)))
    assert {i for i in range(V) if got[0, i] == -np.inf} == {11, 13, *range(47, V)}
    rows = sampling.stack_params([SamplingParams(temperature=t, seed=9) for t in (0, 1, 50.0, 50.0, 1)])
    drawn = sampling.sample(jnp.asarray(got), rows, np.zeros((5, V), bool), np.arange(5))
    assert not set(np.asarray(drawn).tolist()) & {11, 13, *range(47, V)}


def draw(logits_BV, rows, steps):
    seen = np.zeros(logits_BV.shape, bool)
    return np.asarray(jax.jit(sampling.sample)(logits_BV, sampling.stack_params(rows), seen, np.asarray(steps)))


def test_frequencies_are_probabilities():
    n, logits = 4001, np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    rows = [SamplingParams(temperature=2.0, seed=7)] * n
    counts = np.bincount(draw(np.tile(logits, (n, 1)), rows, range(n)), minlength=4)
    wanted = np.exp(logits / 2) / np.exp(logits / 2).sum()
    assert np.abs(counts / n - wanted).max() < 4 * np.sqrt(0.25 / n)


def test_a_row_does_not_depend_on_its_neighbours(logits_BV):
    rows = [SamplingParams(temperature=1.0, seed=seed, top_k=k) for seed, k in enumerate((0, 5, 0, 20, 3))]
    together = draw(logits_BV, rows, [4, 5, 6, 7, 8])
    alone = [draw(logits_BV[b : b + 1], rows[b : b + 1], [4 + b])[0] for b in range(5)]
    assert together.tolist() == alone
    other = draw(
        np.tile(logits_BV[:1], (64, 1)), [SamplingParams(temperature=1.0, seed=s) for s in range(64)], [4] * 64
    )
    assert len(set(other.tolist())) > 5  # the seed matters
    steps = draw(np.tile(logits_BV[:1], (64, 1)), [SamplingParams(temperature=1.0)] * 64, range(64))
    assert len(set(steps.tolist())) > 5  # and so does the step


def test_temperature_zero_is_the_best_token_after_the_penalty():
    logits = np.array([[3.0, 2.0, -1.0]], np.float32)
    rows = sampling.stack_params([SamplingParams(repetition_penalty=2.0)])
    assert sampling.sample(logits, rows, np.array([[True, False, True]]), np.zeros(1, int)).tolist() == [1]


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"stop_strings": ("",)},
    ],
)
def test_bad_values(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        SamplingParams(**bad)


def test_draw_gives_every_token_its_share_and_a_banned_one_none():
    logits_V = np.random.default_rng(0).normal(0, 2, 12).astype(np.float32)
    logits_V[[0, 5, 11]] = -np.inf
    uniform_B2 = np.random.default_rng(1).random((40000, 2), np.float32)
    uniform_B2[:2] = [[0, 0], [np.nextafter(np.float32(1), 0)] * 2]
    B = len(uniform_B2)
    tokens_B = np.asarray(sampling.draw(np.tile(logits_V, (B, 1)), np.full(B, 1.5, np.float32), uniform_B2))
    share_V = np.exp(logits_V / 1.5) / np.exp(logits_V / 1.5).sum()
    counts_V = np.bincount(tokens_B, minlength=12)
    assert not counts_V[[0, 5, 11]].any()
    np.testing.assert_allclose(counts_V / B, share_V, atol=5 * np.sqrt(0.25 / B))
    assert tokens_B[0] == 1 and tokens_B[1] == 10


def test_draw_at_temperature_zero_takes_the_best():
    logits_BV = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    tokens_B = sampling.draw(logits_BV, np.array([0, 1, 0], np.float32), np.zeros((3, 2), np.float32))
    assert tokens_B[::2].tolist() == logits_BV[::2].argmax(axis=1).tolist()


def test_names_as_openai_has_them():
    named = SamplingParams.named
    assert named(max_tokens=7, stop="x", top_p=0.5) == SamplingParams(7, top_p=0.5, stop_strings=("x",))
    assert named(max_completion_tokens=7, stop=["x", "y"]) == SamplingParams(7, stop_strings=("x", "y"))
    assert named(stop_token_ids=[3]) == SamplingParams(stop_token_ids=(3,))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"max_token": 7}, "no parameter 'max_token' .did you mean 'max_tokens'"),
        ({"max_tokens": 7, "max_new_tokens": 8}, "has max_new_tokens twice, as max_new_tokens too"),
        ({"max_tokens": 0}, "sampling.max_new_tokens is 0"),
        ({"stop": ""}, "sampling.stop_strings"),
        ({"stop": 3}, "sampling.stop_strings is 3"),
    ],
)
def test_wrong_names_and_values_are_one_sentence(values, sentence):
    with pytest.raises(InputError, match=sentence):
        SamplingParams.named(**values)
