"""Advantages, policy loss and gradients equal the recorded ones; packed is unpacked; nothing is NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.losses import gspo

CLIP = 0.2, 0.2

advantages = jax.jit(gspo.advantages)
kl_penalty = jax.jit(gspo.kl_penalty)


@pytest.fixture
def recorded(golden):
    folder = golden / "losses"
    with np.load(folder / "gspo_inputs.npz") as inputs, np.load(folder / "gspo_outputs.npz") as outputs:
        return dict(inputs), dict(outputs)


def rows(inputs, name="log_prob"):
    """A response a row."""
    mask_BT = inputs["response_mask"] > 0
    return inputs[name], inputs["old_log_prob"], mask_BT, np.ones(mask_BT.shape, np.int32)


@jax.jit
def step(logprobs_BT, old_BT, mask_BT, segments_BT, advantages_BX, keep_BX, clip):
    def loss(logprobs_BT):
        loss, sums = gspo.policy(logprobs_BT, old_BT, mask_BT, segments_BT, advantages_BX, keep_BX, *clip)
        return loss.total / jnp.maximum(loss.weight, 1), (loss, sums)

    (value, (loss, sums)), grad_BT = jax.value_and_grad(loss, has_aux=True)(logprobs_BT)
    return value, grad_BT, loss, sums


def test_recorded_advantages(recorded):
    inputs, outputs = recorded
    reward_R = inputs["token_level_rewards"].sum(axis=1)
    index_R, expected_R = inputs["index"], outputs["advantages"][:, 0]
    assert sorted(np.unique(index_R, return_counts=True)[1]) == [1, 2, 2, 3]
    size = np.bincount(index_R).max()
    rewards_QA, mask_QA = np.zeros((4, size), np.float32), np.zeros((4, size), bool)
    for group in range(4):
        of_group = index_R == group
        alone = advantages(reward_R[of_group][None])
        np.testing.assert_allclose(alone[0], expected_R[of_group], rtol=1e-5, atol=1e-6)
        rewards_QA[group, : of_group.sum()] = reward_R[of_group]
        mask_QA[group, : of_group.sum()] = True
    rewards_QA[~mask_QA] = np.nan
    found_PG = np.asarray(advantages(rewards_QA, mask_QA))
    np.testing.assert_allclose(found_PG[mask_QA], expected_R[np.argsort(index_R, kind="stable")], rtol=1e-5, atol=1e-6)
    assert not found_PG[~mask_QA].any()


@pytest.mark.parametrize("reward", [0.0, 0.1, 0.9, 1 / 3])
def test_equal_rewards_give_exactly_nothing(reward):
    mask_QA = np.arange(7)[None] != 3
    for mask in (None, mask_QA, mask_QA & False):
        rewards_QA = np.where(mask_QA, np.float32(reward), 7 if mask is not None else np.float32(reward))
        assert np.all(np.asarray(advantages(rewards_QA, mask)) == 0)


@pytest.mark.parametrize("case", [0, 1, 2, "big"])
def test_recorded_losses_and_gradients(recorded, case):
    inputs, outputs = recorded
    sign, clip, name = (1, inputs["clips64"][case], "log_prob") if case != "big" else (-1, CLIP, "big_log_prob")
    found = step(*rows(inputs, name), sign * outputs["advantages"][:, :1], np.ones((8, 1), bool), tuple(clip))
    value, grad_BT, loss, sums = found
    loss_name, grad_name, fraction, kl = (
        ("big_loss", "big_grad", "big_clipfrac", "big_ppo_kl")
        if case == "big"
        else (f"loss_{case}", f"grad_log_prob_{case}", f"clipfrac_{case}", f"ppo_kl_{case}")
    )
    assert float(value) == pytest.approx(float(outputs[loss_name]), rel=1e-5)
    np.testing.assert_allclose(grad_BT, outputs[grad_name], rtol=0, atol=1e-5 * np.max(np.abs(outputs[grad_name])))
    assert loss.weight == 8
    assert float(sums["clipped_tokens"] / sums["tokens"]) == pytest.approx(float(outputs[fraction]), rel=1e-6)
    assert float(sums["kl"] / sums["tokens"]) == pytest.approx(float(outputs[kl]), rel=1e-5)


def packed(inputs, outputs):
    """The eight responses in two rows of 61 tokens with room for 6 segments, of which they use 5 and 3."""
    S, rows_R = 6, np.array([0, 1, 0, 0, 1, 0, 0, 1])
    columns_R = np.array([sum(rows_R[:r] == rows_R[r]) for r in range(8)])
    arrays = {name: np.full((2, 61), np.nan, np.float32) for name in ("log_prob", "old_log_prob")}
    mask_BT, segments_BT = np.zeros((2, 61), bool), np.zeros((2, 61), np.int32)
    advantages_BX, keep_BX, where = np.zeros((2, S), np.float32), np.zeros((2, S), bool), []
    ends = [0, 0]
    for response, (row, column) in enumerate(zip(rows_R, columns_R, strict=True)):
        place = row, slice(ends[row], ends[row] + 11)
        ends[row] += 11
        for name, array in arrays.items():
            array[place] = inputs[name][response]
        mask_BT[place], segments_BT[place] = inputs["response_mask"][response] > 0, column + 1
        advantages_BX[row, column], keep_BX[row, column] = outputs["advantages"][response, 0], True
        where.append(place)
    return (*arrays.values(), mask_BT, segments_BT, advantages_BX, keep_BX, CLIP), where, (rows_R, columns_R)


def test_packed_equals_unpacked(recorded):
    inputs, outputs = recorded
    arguments, where, _ = packed(inputs, outputs)
    value, grad_BT, loss, sums = step(*arguments)
    alone = step(*rows(inputs), outputs["advantages"][:, :1], np.ones((8, 1), bool), CLIP)
    np.testing.assert_allclose(value, alone[0], rtol=1e-6)
    assert loss.weight == 8
    for response, place in enumerate(where):
        np.testing.assert_allclose(grad_BT[place], alone[1][response], rtol=1e-5, atol=1e-9)
    assert not np.asarray(grad_BT)[arguments[3] == 0].any()
    for name, total in sums.items():
        assert float(total) == pytest.approx(float(alone[3][name]), rel=1e-5), name


def test_parts_combine(recorded):
    arguments, _, _ = packed(*recorded)
    *arrays, clip = arguments
    whole = step(*arguments)
    parts = [step(*(array[row : row + 1] for array in arrays), clip) for row in range(2)]
    np.testing.assert_allclose(whole[2], sum(np.array(part[2]) for part in parts), rtol=1e-6)
    for name, total in whole[3].items():
        values = [float(part[3][name]) for part in parts]
        combined = max(values) if name.startswith("max_") else sum(values)
        assert float(total) == pytest.approx(combined, rel=1e-6), name


def test_masked_is_dropped(recorded):
    """A response that was cut off is in neither sum, whatever it holds."""
    inputs, outputs = recorded
    (logprobs_BT, *others, advantages_BX, keep_BX, clip), where, (rows_R, columns_R) = packed(inputs, outputs)
    cut = 4
    logprobs_BT[where[cut]] = -np.inf
    keep_BX[rows_R[cut], columns_R[cut]] = False
    advantages_BX[rows_R[cut], columns_R[cut]] = np.nan
    value, grad_BT, loss, sums = step(logprobs_BT, *others, advantages_BX, keep_BX, clip)

    rest = np.arange(8) != cut
    alone = step(*(array[rest] for array in rows(inputs)), outputs["advantages"][rest, :1], np.ones((7, 1), bool), CLIP)
    np.testing.assert_allclose(value, alone[0], rtol=1e-6)
    assert loss.weight == 7
    assert sums["tokens"] == alone[3]["tokens"]
    assert not np.asarray(grad_BT[where[cut]]).any()


def test_the_same_policy_has_ratio_one(recorded):
    inputs, outputs = recorded
    (_, old_BT, *others), _, _ = packed(inputs, outputs)
    _, grad_BT, loss, sums = step(old_BT, old_BT, *others)
    assert float(loss.total) == pytest.approx(-others[2].sum(), abs=1e-6)
    assert sums["max_ratio"] == 1
    assert not any(float(sums[name]) for name in ("difference", "kl", "clipped", "clipped_tokens", "max_difference"))
    assert np.any(grad_BT)


@pytest.mark.parametrize("masked", ["mask", "keep", "segments"])
def test_nothing_to_learn_from_gives_zero(masked):
    values_BT = np.full((2, 5), -np.inf, np.float32)
    mask_BT, keep_BX = np.full((2, 5), masked != "mask"), np.full((2, 3), masked != "keep")
    segments_BT = np.full((2, 5), int(masked != "segments"), np.int32)
    value, grad_BT, loss, sums = step(values_BT, values_BT, mask_BT, segments_BT, np.ones((2, 3)), keep_BX, CLIP)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((value, grad_BT, loss, sums)))
    penalty, grad_BT = jax.value_and_grad(lambda x: kl_penalty(x, values_BT, mask_BT, segments_BT, keep_BX).total)(
        values_BT
    )
    assert penalty == 0 and not np.any(grad_BT)


def test_a_sequence_of_32768_tokens():
    """Each token's share of the gradient is tiny, not lost; a mean has no trouble with what a sum would overflow."""
    T = 32768
    old_BT = np.random.default_rng(7).normal(-1, 0.3, (1, T)).astype(np.float32)
    ones_BT = np.ones((1, T), np.int32)
    value, grad_BT, _, _ = step(
        old_BT + 0.05, old_BT, ones_BT > 0, ones_BT, np.full((1, 1), 1.5, np.float32), np.ones((1, 1), bool), CLIP
    )
    assert float(value) == pytest.approx(-1.5 * np.exp(0.05), rel=1e-5)
    np.testing.assert_allclose(grad_BT, np.full((1, T), -1.5 * np.exp(0.05) / T), rtol=1e-4)


@pytest.mark.parametrize("cap", [1.0, 1.05, 100.0])
def test_importance_weights(cap):
    """Value and gradient of the weighed loss are those of a plain float64 calculation; weights are constants."""
    rng = np.random.default_rng(9)
    logprobs_BT, old_BT, sampled_BT = rng.normal(-1, 0.3, (3, 2, 17)).astype(np.float32)
    segments_BT = np.repeat([[1, 2, 3]], [6, 5, 6], axis=1).repeat(2, axis=0).astype(np.int32)
    mask_BT = rng.random((2, 17)) < 0.7
    mask_BT[:, ::6] = True
    advantages_BX, keep_BX = rng.normal(0, 1, (2, 4)).astype(np.float32), np.array([[1, 1, 1, 0], [1, 0, 1, 0]], bool)
    at = mask_BT, segments_BT

    @jax.jit
    def loss(logprobs_BT):
        weights_BX, sums = gspo.importance_weights(old_BT, sampled_BT, *at, keep_BX, cap)
        found, _ = gspo.policy(logprobs_BT, old_BT, *at, advantages_BX * weights_BX, keep_BX, *CLIP)
        return found.total, (found.weight, weights_BX, sums)

    (total, (weight, weights_BX, sums)), grad_BT = jax.value_and_grad(loss, has_aux=True)(logprobs_BT)
    expected, expected_grad_BT, capped = 0.0, np.zeros((2, 17)), 0
    new_BT, old_BT, sampled_BT = (each.astype(np.float64) for each in (logprobs_BT, old_BT, sampled_BT))
    for b, x in zip(*np.nonzero(keep_BX), strict=True):
        on_T = mask_BT[b] & (segments_BT[b] == x + 1)
        mean = lambda one_BT, other_BT, b=b, on_T=on_T: np.mean(one_BT[b, on_T] - other_BT[b, on_T])
        w = min(np.exp(mean(old_BT, sampled_BT)), cap)
        capped += w == cap
        np.testing.assert_allclose(weights_BX[b, x], w, rtol=1e-5)
        s, advantage = np.exp(mean(new_BT, old_BT)), advantages_BX[b, x]
        free, clipped = s * advantage, np.clip(s, 0.8, 1.2) * advantage
        expected -= w * min(free, clipped)
        if free <= clipped:
            expected_grad_BT[b, on_T] = -w * advantage * s / on_T.sum()
    assert capped == sums["capped"] and (cap > 2 or 0 < capped < 5)
    assert weight == 5 == sums["weighed"] and not weights_BX[~keep_BX].any()
    assert float(sums["weights"]) == pytest.approx(float(weights_BX.sum()), rel=1e-6)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(grad_BT, expected_grad_BT, rtol=1e-4, atol=1e-6)


def test_kl_penalty():
    """Value and gradient per token of a plain float64 calculation; clamped values have no gradient."""
    rng = np.random.default_rng(8)
    logprobs_BT, reference_BT = rng.normal(-2, 1, (2, 3, 11)).astype(np.float32)
    reference_BT[0, 2], reference_BT[1, 3], reference_BT[2, 1] = 30, -30, logprobs_BT[2, 1] + 2.2
    mask_BT = rng.random((3, 11)) < 0.7
    mask_BT[[0, 1, 2], [2, 3, 1]] = True
    ones_BT, keep_BX = np.ones((3, 11), np.int32), np.array([[True], [True], [False]])

    def loss(x):
        return kl_penalty(x, reference_BT, mask_BT, ones_BT, keep_BX)

    d_BT = reference_BT.astype(np.float64) - logprobs_BT
    expected_BT = np.exp(np.clip(d_BT, -20, 20)) - np.clip(d_BT, -20, 20) - 1
    free_BT = (expected_BT < 10) & (np.abs(d_BT) < 20)
    share_BT = mask_BT * keep_BX / mask_BT.sum(axis=1, keepdims=True)
    total, weight = loss(logprobs_BT)
    assert weight == 2
    assert float(total) == pytest.approx(np.sum(np.minimum(expected_BT, 10) * share_BT), rel=1e-5)
    grad_BT = jax.grad(lambda x: loss(x).total)(logprobs_BT)
    np.testing.assert_allclose(grad_BT, (1 - np.exp(d_BT)) * share_BT * free_BT, rtol=1e-4, atol=1e-6)
    assert loss(reference_BT).total == 0
