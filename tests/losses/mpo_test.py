"""Five steps of preference optimisation equal the recorded ones: parts, running mean, gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.losses import mpo, next_token


@pytest.fixture
def recorded(golden):
    folder = golden / "losses"
    with np.load(folder / "mpo_inputs.npz") as inputs, np.load(folder / "mpo_outputs.npz") as outputs:
        return dict(inputs), dict(outputs), json.loads((folder / "mpo.json").read_text())


def ratios(inputs, step=slice(None)):
    return [inputs[f"{name}_logps"][step] - inputs[f"ref_{name}_logps"][step] for name in ("chosen", "rejected")]


def observe(running, chosen, rejected, mask, beta):
    total = beta * jnp.sum(jnp.where(mask, chosen + rejected, 0))
    return running.update(total, 2 * jnp.sum(mask))


def test_recorded_steps(recorded):
    inputs, outputs, settings = recorded
    beta, factors = settings["beta"], settings["loss_weights"]
    assert settings["loss_types"] == ["sigmoid", "bco_pair", "sft"]

    @jax.jit
    def step(running, chosen, rejected, nll):
        mask = jnp.ones(chosen.shape, bool)

        def loss(chosen, rejected, nll):
            after = observe(running, chosen, rejected, mask, beta)
            terms = (
                mpo.preference(chosen, rejected, mask, beta),
                mpo.quality(chosen, rejected, mask, beta, after.mean),
                next_token(-nll[None, None], jnp.ones((1, 1))),
            )
            values = [term.total / term.weight for term in terms]
            return sum(factor * value for factor, value in zip(factors, values, strict=True)), (values, after)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(chosen, rejected, nll)

    running = mpo.RunningMean.start()
    for index in range(settings["steps"]):
        nll = inputs["nll_loss"][index]
        (loss, (values, running)), grads = step(running, *ratios(inputs, index), nll)
        assert float(running.mean) == pytest.approx(float(outputs["bco_delta"][index]), rel=1e-5, abs=1e-7)
        assert float(loss) == pytest.approx(float(outputs["loss"][index]), rel=1e-5)
        for name, value in zip(("sigmoid", "bco_pair", "sft"), values, strict=True):
            assert float(value) == pytest.approx(outputs[name][index].mean(), rel=1e-5)
        for name, grad in zip(("chosen_logps", "rejected_logps", "nll"), grads, strict=True):
            expected = outputs[f"grad_{name}"][index]
            np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-5 * np.max(np.abs(expected)))


def test_every_pair_as_recorded(recorded):
    inputs, outputs, settings = recorded
    chosen, rejected = ratios(inputs)
    for step, pair in np.ndindex(chosen.shape):
        one = chosen[step, pair, None], rejected[step, pair, None], np.ones(1, bool), settings["beta"]
        sigmoid, bco = mpo.preference(*one), mpo.quality(*one, outputs["bco_delta"][step])
        assert float(sigmoid.total) == pytest.approx(float(outputs["sigmoid"][step, pair]), rel=1e-5)
        assert float(bco.total) == pytest.approx(float(outputs["bco_pair"][step, pair]), rel=1e-5)


def test_a_policy_that_is_its_reference_gives_ln_2():
    zeros, mask = np.zeros((2, 3), np.float32), np.ones((2, 3), bool)
    np.testing.assert_allclose(mpo.preference(zeros, zeros, mask, 0.1), (6 * np.log(2), 6), rtol=1e-6)
    np.testing.assert_allclose(mpo.quality(zeros, zeros, mask, 0.1, 0.0), (12 * np.log(2), 6), rtol=1e-6)


def both(chosen, rejected, mask):
    preference = mpo.preference(chosen, rejected, mask, 0.1)
    quality = mpo.quality(chosen, rejected, mask, 0.1, jnp.float32(0.3))
    return preference.total + quality.total, preference.weight


@pytest.mark.parametrize("real", [0, 4])
def test_what_is_no_pair_does_not_exist(recorded, real):
    chosen, rejected = (ratio[3] for ratio in ratios(recorded[0]))
    chosen, rejected = (np.concatenate([ratio[:real], [np.inf, -np.inf, np.nan]]) for ratio in (chosen, rejected))
    mask = np.arange(real + 3) < real
    (total, weight), grads = jax.value_and_grad(both, argnums=(0, 1), has_aux=True)(chosen, rejected, mask)
    alone, _ = both(chosen[:real], rejected[:real], mask[:real])
    assert float(total) == pytest.approx(float(alone), rel=1e-6)
    assert weight == real
    for grad in grads:
        assert np.all(np.isfinite(grad[:real])) and np.all(np.asarray(grad[real:]) == 0)


@pytest.mark.parametrize("chosen", [-75366.0, 75366.0])
def test_log_ratios_of_32768_tokens(chosen):
    """Right or wrong as can be, value and gradient are finite."""
    chosen, rejected, mask = np.full(1, chosen, np.float32), np.full(1, -chosen, np.float32), np.ones(1, bool)
    (total, _), grads = jax.value_and_grad(both, argnums=(0, 1), has_aux=True)(chosen, rejected, mask)
    expected = max(0, -0.2 * chosen[0]) + max(0, 0.3 - 0.1 * chosen[0]) + max(0, 0.1 * rejected[0] - 0.3)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    right = 0.0 if chosen > 0 else 0.2
    np.testing.assert_allclose(grads, [[-right], [right]], rtol=1e-5)


def test_the_running_mean_is_a_constant_of_the_gradient():
    def loss(chosen):
        running = mpo.RunningMean.start().update(jnp.sum(chosen), 1)
        return mpo.quality(chosen, chosen * 0, jnp.ones(1, bool), 1.0, running.mean).total

    x = 0.7
    np.testing.assert_allclose(jax.grad(loss)(jnp.full(1, x)), [-1 / (1 + np.exp(x - x))], rtol=1e-6)


def test_a_batch_without_pairs_leaves_the_running_mean():
    """And each batch is one observation, whatever its size."""
    running = mpo.RunningMean.start()
    for total, weight, expected in [(6.0, 2, 3.0), (5.0, 5, 2.0), (0.0, 0, 2.0), (0.0, 1, 4 / 3)]:
        running = running.update(jnp.float32(total), jnp.int32(weight))
        assert float(running.mean) == pytest.approx(expected, rel=1e-6)
    assert running.count == 3
    assert {part.dtype for part in running} == {np.dtype(np.float32)}
