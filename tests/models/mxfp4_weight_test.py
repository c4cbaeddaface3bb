"""GPT-OSS's experts as they are released: the same values, and the same answers, whether they lie packed or not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoint_convert import convert
from configs.models import sizes
from internvl_jax.errors import InputError
from internvl_jax.models import PARTS, Runtime, weight_path
from internvl_jax.models.bricks.grouped import Groups
from internvl_jax.models.bricks.weight import Weight
from internvl_jax.models.config import MoeConfig
from internvl_jax.models.transforms.mxfp4_weight import Mxfp4Weight, packed, unpacked
from internvl_jax.sharding import structure
from tests.models.lora_test import logits, rows

_PACKED, _UNPACKED = jax.jit(packed), jax.jit(unpacked, static_argnums=(2, 3))


def test_every_released_value_is_kept_to_the_bit(golden):
    for name, values in np.load(golden / "gptoss_mxfp4" / "outputs.npz").items():
        if name != "mlp_output":
            weights = np.ascontiguousarray(values.swapaxes(1, 2))  # blocks lie along the inputs
            found = _UNPACKED(*_PACKED(weights), weights.shape[-1], jnp.dtype(jnp.float32))
            np.testing.assert_array_equal(np.asarray(found).view(np.uint32), weights.view(np.uint32), err_msg=name)


def test_products_of_some_of_all_experts_are_those_of_the_values():
    """Through the block that a row's inputs fill half, and back to inputs."""
    rng, groups = np.random.default_rng(0), Groups(jnp.array([2, 0, 5], jnp.int32), 2)
    stored = Mxfp4Weight(Weight(jnp.asarray(rng.normal(size=(5, 6, 48)), jnp.float32), axes=(None,) * 3, num_inputs=1))
    x, values = jnp.asarray(rng.normal(size=(7, 48)), jnp.float32), stored.dense(jnp.float32)
    assert stored.mxfp4[...].shape == (5, 6, 32) and values.shape == (5, 6, 48)
    plain = Weight(values, axes=(None,) * 3, num_inputs=1)
    ends = [
        jax.jit(jax.value_and_grad(lambda x, weight=weight: jnp.sum(jnp.sin(weight.grouped(x, groups)))))(x)
        for weight in (stored, plain)
    ]
    jax.tree.map(lambda found, expected: np.testing.assert_allclose(found, expected, atol=1e-5), *ends)


@pytest.mark.soak
def test_packed_experts_answer_as_they_did():
    """Widths that fill no last block, too."""
    text = {"family": "gpt_oss", "window": 7, "mlp": 40, "moe": MoeConfig(experts=4, per_token=2)}
    plain = sizes.like(sizes.TINY, {}, text, image_token_id=5)
    config = dataclasses.replace(plain, quantised="mxfp4")
    graphdef, specs = structure(PARTS["all"], config, Runtime())
    rng, params, found = np.random.default_rng(0), {}, {}
    for path, spec in structure(PARTS["all"], plain, Runtime())[1].items():
        value = rng.normal(size=spec.shape).astype(np.float32) * 0.1 + path.endswith(("norm.scale", "ls1", "ls2"))
        if f"{path}.mxfp4" in specs:
            found[f"{path}.mxfp4"], found[f"{path}.mxfp4_scale"] = _PACKED(value)
            value = _UNPACKED(*_PACKED(value), value.shape[-1], jnp.dtype(jnp.float32))
        else:
            found[path] = value
        params[path] = value
    assert found.keys() == specs.keys() and all(found[path].shape == specs[path].shape for path in specs)
    assert {weight_path(path) for path in specs} - {None} == {
        f"lm.layers.mlp.experts.{name}.weight" for name in ("gate_up", "down")
    }
    given = rows(plain)
    expected = jax.jit(functools.partial(logits, structure(PARTS["all"], plain, Runtime())[0]))(params, *given)
    np.testing.assert_allclose(jax.jit(functools.partial(logits, graphdef))(found, *given), expected, atol=1e-6)


def test_what_would_be_rounded_is_refused(golden, tmp_path):
    with pytest.raises(InputError, match=r"experts\.\w+\.weight was not stored as mxfp4 and would be rounded"):
        convert(golden / "hf_gptoss", tmp_path / "out", quantise="mxfp4")
    with pytest.raises(InputError, match="which is for experts, and this model has none"):
        convert(golden / "hf_qwen3", tmp_path / "out", quantise="mxfp4")
