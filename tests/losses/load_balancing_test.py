"""The load-balancing loss equals the recorded one, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.losses import load_balancing


@pytest.mark.parametrize("case", ["nomask", "mask"])
def test_recorded_values_and_gradients(golden, case):
    with np.load(golden / "losses" / "moe_balance_inputs.npz") as file:
        inputs = dict(file)
    with np.load(golden / "losses" / "moe_balance_outputs.npz") as file:
        outputs = dict(file)
    mask_BT = inputs["attention_mask"] if case == "mask" else np.ones_like(inputs["attention_mask"])
    flat = inputs["router_logits"]
    router_LBTE = flat.reshape(flat.shape[0], *mask_BT.shape, -1)
    value, grad = jax.value_and_grad(load_balancing)(jnp.asarray(router_LBTE), mask_BT, int(inputs["top_k"]))
    assert float(value) == pytest.approx(float(outputs[f"loss_{case}"]), rel=1e-5)
    np.testing.assert_allclose(grad.reshape(flat.shape), outputs[f"grad_{case}"], rtol=1e-4, atol=1e-7)


def test_even_use_gives_the_number_of_experts_a_token():
    """And without a token that counts it is 0, not NaN."""
    router_LBTE = jnp.tile(jnp.eye(5) * 1e-3, (2, 3, 1, 1))  # nearly equal probabilities, every expert once
    assert float(load_balancing(router_LBTE, np.ones((3, 5)), 1)) == pytest.approx(1, rel=1e-3)
    assert float(load_balancing(router_LBTE, np.zeros((3, 5)), 1)) == 0
