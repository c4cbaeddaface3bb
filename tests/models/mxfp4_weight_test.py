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
from internvl_jax.models.config import MoeConfig
from internvl_jax.models.transforms.mxfp4_weight import packed, unpacked
from internvl_jax.sharding import structure
from tests.models.lora_test import logits, rows

_PACKED, _UNPACKED = jax.jit(packed), jax.jit(unpacked, static_argnums=(2, 3))


def test_every_released_value_is_kept_to_the_bit(golden):
    for name, values in np.load(golden / "gptoss_mxfp4" / "outputs.npz").items():
        if name != "mlp_output":
            weights = np.ascontiguousarray(values.swapaxes(1, 2))  # blocks lie along the inputs
            found = _UNPACKED(*_PACKED(weights), weights.shape[-1], jnp.dtype(jnp.float32))
            np.testing.assert_array_equal(np.asarray(found).view(np.uint32), weights.view(np.uint32), err_msg=name)


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
