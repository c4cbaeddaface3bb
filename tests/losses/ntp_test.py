"""The next-token loss equals the released one, value and gradient; what is not supervised does not exist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.losses import next_token

IGNORED = -100  # label of a token that is not supervised, in the release


def loss(logits_BTV, targets_BT, weights_BT):
    logprobs_BTV = jax.nn.log_softmax(logits_BTV)
    logprobs_BT = jnp.take_along_axis(logprobs_BTV, targets_BT[:, :, None], axis=2)[:, :, 0]
    total, weight = next_token(logprobs_BT, weights_BT)
    return total / jnp.maximum(weight, 1e-9)


@pytest.fixture(scope="module")
def value_and_grad():
    return jax.jit(jax.value_and_grad(loss))


def released_weights(case: str, labels_BT: np.ndarray, outputs: dict) -> np.ndarray:
    """Weights before the shift: given by the collator, or 1/sqrt(N) where the model makes them itself."""
    name = case.replace("weighted", "weight").replace("packed", "packed_weight")
    if name in outputs and name != case:
        return outputs[name].reshape(labels_BT.shape)
    supervised_BT = labels_BT != IGNORED
    return supervised_BT / np.sqrt(supervised_BT.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(
    "case",
    [
        "padded_square",
        "padded_weighted_token",
        "padded_weighted_sample",
        "padded_weighted_square",
        "packed_token",
        "packed_sample",
        "packed_square",
    ],
)
def test_released_values_and_gradients(golden, value_and_grad, case):
    folder = golden / "losses"
    with np.load(folder / "ntp_inputs.npz") as inputs, np.load(folder / "ntp_outputs.npz") as outputs:
        inputs, outputs = dict(inputs), dict(outputs)
    layout = case.split("_")[0]
    logits_BTV, labels_BT = inputs[f"{layout}_logits"], inputs[f"{layout}_labels"]
    weights_BT = released_weights(case, labels_BT, outputs)
    targets_BT = np.where(labels_BT == IGNORED, 0, labels_BT).astype(np.int32)

    shifted = (targets_BT[:, 1:], weights_BT[:, 1:].astype(np.float32))
    value, grad_BTV = value_and_grad(logits_BTV[:, :-1], *shifted)

    assert float(value) == pytest.approx(float(outputs[case]), rel=1e-5)
    expected_BTV = outputs[f"{case}_grad"]
    np.testing.assert_allclose(grad_BTV, expected_BTV[:, :-1], rtol=0, atol=1e-5 * np.max(np.abs(expected_BTV)))
    assert not expected_BTV[:, -1].any()  # what nothing is predicted from


def example():
    rng = np.random.default_rng(3)
    logits_BTV = rng.normal(size=(2, 7, 11)).astype(np.float32)
    targets_BT = rng.integers(0, 11, (2, 7)).astype(np.int32)
    weights_BT = rng.uniform(0.1, 2, (2, 7)).astype(np.float32)
    weights_BT[0, 2:5] = weights_BT[1, :3] = 0
    return logits_BTV, targets_BT, weights_BT


def test_masked_equals_dropped(value_and_grad):
    logits_BTV, targets_BT, weights_BT = example()
    value, grad_BTV = value_and_grad(logits_BTV, targets_BT, weights_BT)
    kept = weights_BT > 0
    dropped, grad_1TV = value_and_grad(logits_BTV[kept][None], targets_BT[kept][None], weights_BT[kept][None])
    assert float(value) == pytest.approx(float(dropped), rel=1e-6)
    np.testing.assert_allclose(grad_BTV[kept], grad_1TV[0], rtol=1e-5, atol=1e-8)
    assert not np.any(grad_BTV[~kept])


def test_parts_add_up_to_the_whole():
    logprobs_BT, weights_BT = -np.square(example()[0][:, :, 0]), example()[2]
    whole = next_token(logprobs_BT, weights_BT)
    parts = [next_token(logprobs_BT[row], weights_BT[row]) for row in range(2)]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)
    assert whole.weight == pytest.approx(weights_BT.sum(), rel=1e-6)


def test_nothing_supervised_gives_a_finite_zero(value_and_grad):
    logits_BTV, targets_BT, weights_BT = example()
    value, grad_BTV = value_and_grad(logits_BTV, targets_BT, np.zeros_like(weights_BT))
    assert float(value) == 0.0
    assert np.all(np.asarray(grad_BTV) == 0)


def test_an_impossible_token_without_weight_is_no_nan(value_and_grad):
    logits_BTV, targets_BT, weights_BT = example()
    expected, _ = value_and_grad(logits_BTV, targets_BT, weights_BT)
    logits_BTV[0, 3, targets_BT[0, 3]] = -np.inf
    value, grad_BTV = value_and_grad(logits_BTV, targets_BT, weights_BT)
    assert float(value) == float(expected)
    assert np.all(np.isfinite(grad_BTV))
