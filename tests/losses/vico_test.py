"""The divergence equals the recorded one, value and gradient; the router's targets, loss and window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.losses import LossSum, vico


@pytest.fixture
def recorded(golden):
    folder = golden / "losses"
    with np.load(folder / "kl_inputs.npz") as inputs, np.load(folder / "kl_outputs.npz") as outputs:
        return dict(inputs), dict(outputs)


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_recorded_divergences_and_gradients(recorded, direction):
    inputs, outputs = recorded
    teacher_BTV = inputs["teacher_logits"]

    def mean(student_BTV):
        pair = (teacher_BTV, student_BTV) if direction == "teacher_student" else (student_BTV, teacher_BTV)
        kl_BT = vico.forward_kl(*pair)
        total, weight = LossSum.of(kl_BT, inputs["mask"])
        return total / weight, kl_BT

    (value, kl_BT), grad_BTV = jax.value_and_grad(mean, has_aux=True)(inputs["student_logits"])
    np.testing.assert_allclose(kl_BT, outputs[f"{direction}_per_token"], rtol=1e-5)
    assert float(value) == pytest.approx(float(outputs[f"{direction}_masked_mean"]), rel=1e-5)
    expected_BTV = outputs[f"{direction}_grad_student"]
    np.testing.assert_allclose(grad_BTV, expected_BTV, rtol=0, atol=1e-5 * np.max(np.abs(expected_BTV)))
    if direction == "teacher_student":
        assert float(kl_BT.mean()) == pytest.approx(float(outputs["batchmean"]), rel=1e-5)


def test_divergence_of_the_same_is_nothing_and_of_excluded_words_finite():
    logits_BTV = np.random.default_rng(9).normal(0, 30, (2, 3, 11)).astype(np.float32)
    assert not np.any(vico.forward_kl(logits_BTV, logits_BTV))
    teacher_BTV, student_BTV = logits_BTV.copy(), logits_BTV[:, ::-1].copy()
    teacher_BTV[:, :, :3] = student_BTV[:, :, 1] = -np.inf
    expected_BT = vico.forward_kl(teacher_BTV[:, :, 3:], student_BTV[:, :, 3:])
    kl_BT, grad = jax.vjp(lambda student: vico.forward_kl(teacher_BTV, student), student_BTV)
    assert np.all(kl_BT >= expected_BT - 1e-3) and np.all(np.isfinite(kl_BT))
    assert np.all(np.isfinite(grad(jnp.ones_like(kl_BT))[0]))
    half = vico.forward_kl(jnp.asarray(logits_BTV, jnp.bfloat16), jnp.asarray(logits_BTV[:, ::-1], jnp.bfloat16))
    assert half.dtype == jnp.float32


def test_loss_ratio_of_nothing_is_one():
    ratio = vico.loss_ratio(jnp.array([0.0, 0.2, 0.2]), jnp.array([0.0, 0.1, 0.0]), 1e-3)
    np.testing.assert_allclose(ratio, [1, 0.201 / 0.101, 201], rtol=1e-5)


def test_column_0_compresses():
    """A logit in column 0 makes a target of 0 (64 tokens) likely."""
    target_G = vico.router_targets(jnp.array([0.5, 1.5, 1.4999]), jnp.float32(1.5))
    np.testing.assert_array_equal(target_G, [0, 1, 0])
    loss = lambda route: vico.route_cross_entropy(jnp.array([route] * 3), target_G, jnp.ones(3, bool))
    compress = -np.log(1 / (1 + np.exp(-2.0)))  # -log softmax([2, 0])[0]
    np.testing.assert_allclose(loss([2.0, 0.0]), (2 * compress + compress + 2, 3), rtol=1e-5)


def test_route_cross_entropy_and_its_gradient():
    rng = np.random.default_rng(10)
    route_G2, mask_G = rng.normal(0, 3, (7, 2)).astype(np.float32), np.arange(7) != 2
    route_G2[2], target_G = np.nan, np.array([0, 1, 1, 0, 1, 0, 1], np.float32)
    total, grad_G2 = jax.value_and_grad(lambda route: vico.route_cross_entropy(route, target_G, mask_G).total)(route_G2)
    picked_G = np.asarray(jax.nn.log_softmax(route_G2))[np.arange(7), target_G.astype(int)]
    assert float(total) == pytest.approx(-picked_G[mask_G].sum(), rel=1e-5)
    expected_G2 = np.asarray(jax.nn.softmax(route_G2)) - np.eye(2)[target_G.astype(int)]
    np.testing.assert_allclose(grad_G2[mask_G], expected_G2[mask_G], rtol=1e-4, atol=1e-6)
    assert not np.any(grad_G2[2])
    nothing = vico.route_cross_entropy(route_G2, target_G, mask_G & False)
    assert nothing == (0, 0)


def test_the_window_holds_the_last_values():
    """Against a list, through pushes of one shape: none, few, as many as it holds, and more."""
    rng, W, G = np.random.default_rng(11), 5, 7
    push, window, pushed = jax.jit(vico.RatioWindow.push), vico.RatioWindow.start(W), []
    percentile = jax.jit(vico.RatioWindow.percentile)
    assert window.percentile(0.5) == -np.inf
    for chosen in [(), (1, 3), (6,), (0, 2, 4), (), tuple(range(7)), (5,), tuple(range(6)), (2, 3, 4, 5, 6)]:
        values_G = rng.normal(size=G).astype(np.float32)
        mask_G = np.isin(np.arange(G), chosen)
        window = push(window, np.where(mask_G, values_G, np.nan), mask_G)
        pushed.extend(values_G[mask_G])
        assert window.count == len(pushed)
        np.testing.assert_array_equal(np.sort(window.values_W[: len(pushed)]), np.sort(pushed[-W:]))
        for share in (0.0, 0.3, 0.5, 1.0):
            expected = np.percentile(pushed[-W:], 100 * share) if pushed else -np.inf
            assert float(percentile(window, share)) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
    assert push._cache_size() == 1
