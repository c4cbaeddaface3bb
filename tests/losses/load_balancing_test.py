"""The load-balancing loss equals the recorded one, value and gradient; rows are losses of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.losses import load_balancing
from internvl_jax.models.bricks.moe import Routing, expert_load


def balance(router_LBTE, mask_BT, per_token):
    """From the routers' logits; all tokens of a batch as one row are what the reference takes."""
    experts_LBTK = jax.lax.top_k(router_LBTE, per_token)[1]
    routings = [
        Routing(logits_BTE, experts_BTK, own_BTK=experts_BTK, balanced_BTE=logits_BTE)
        for logits_BTE, experts_BTK in zip(router_LBTE, experts_LBTK, strict=True)
    ]
    load = [expert_load(routing, mask_BT) for routing in routings]
    return load_balancing(*(jnp.stack(part) for part in zip(*load, strict=True)), mask_BT.sum(axis=1))


@pytest.mark.parametrize("case", ["nomask", "mask"])
def test_recorded_values_and_gradients(golden, case):
    with np.load(golden / "losses" / "moe_balance_inputs.npz") as file:
        inputs = dict(file)
    with np.load(golden / "losses" / "moe_balance_outputs.npz") as file:
        outputs = dict(file)
    mask_BT = inputs["attention_mask"] if case == "mask" else np.ones_like(inputs["attention_mask"])
    flat = inputs["router_logits"]

    def loss(router):
        total, weight = balance(router.reshape(flat.shape[0], 1, mask_BT.size, -1), mask_BT.reshape(1, -1), top_k)
        return total / weight

    top_k = int(inputs["top_k"])
    value, grad = jax.value_and_grad(loss)(jnp.asarray(flat))
    assert float(value) == pytest.approx(float(outputs[f"loss_{case}"]), rel=1e-5)
    expected = outputs[f"grad_{case}"]
    np.testing.assert_allclose(grad.reshape(flat.shape), expected, rtol=0, atol=1e-5 * np.max(np.abs(expected)))


def test_even_use_gives_the_number_of_experts_a_token():
    """And without a token that counts it is 0, not NaN."""
    router_LBTE = jnp.tile(jnp.eye(5) * 1e-3, (2, 3, 1, 1))  # nearly equal probabilities, every expert once
    assert balance(router_LBTE, np.ones((3, 5)), 1) == pytest.approx((3, 3), rel=1e-3)
    assert balance(router_LBTE, np.zeros((3, 5)), 1) == (0, 0)


def test_rows_add_up_and_padding_does_not_exist():
    rng = np.random.default_rng(2)
    router_LBTE = jnp.asarray(rng.normal(size=(3, 4, 7, 5)))
    mask_BT = np.arange(7)[None] < np.array([7, 4, 0, 1])[:, None]
    whole = balance(router_LBTE, mask_BT, 2)
    alone = [balance(router_LBTE[:, [b], :n], np.ones((1, n)), 2) for b, n in ((0, 7), (1, 4), (3, 1))]
    np.testing.assert_allclose(whole, np.sum(alone, axis=0), rtol=1e-6)
    assert whole.weight == 3
