"""Halves of released checkpoints: each is read alone, and what is wrong with the other is found."""

import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoint_convert import load_released
from internvl_jax.errors import InputError
from internvl_jax.models import LanguageHalf, VisionHalf
from internvl_jax.sharding import flatten, make_mesh

CASE = "visualprm_qwen2_github"
PREFIX = {"vision": ("vit.", "projector."), "language": ("lm.",)}


@pytest.fixture(scope="module")
def whole(request):
    golden = request.path.parent.parent / "golden"
    return flatten(load_released(golden / CASE, "float32")[0])


@pytest.mark.parametrize("sizes", [None, {"data": 2, "tensor": 2}], ids=str)
@pytest.mark.parametrize(("part", "kind"), [("vision", VisionHalf), ("language", LanguageHalf)])
def test_a_half_alone(golden, whole, part, kind, sizes):
    model, processor = load_released(golden / CASE, "float32", sizes and make_mesh(sizes, jax.devices()[:4]), part=part)
    found = flatten(model)
    assert type(model) is kind and processor.tokenizer.image_context == model.config.image_token_id
    assert found.keys() == {path for path in whole if path.startswith(PREFIX[part])}
    assert all(np.array_equal(found[path], whole[path]) for path in found)
    devices = {len(leaf.devices()) for leaf in found.values()}
    assert devices == {1} if sizes is None else 4 in devices


def changed(golden, tmp_path, change):
    """A copy whose tensors are others."""
    shutil.copytree(golden / CASE, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.npz", "compare"))
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_nothing_of_the_other_half_is_read(golden, tmp_path):
    """A value that is not finite is found by whoever reads it."""
    names = []

    def spoil(tensors):
        name = next(name for name in tensors if name.startswith("language_model.") and name.endswith("norm.weight"))
        tensors[name] = tensors[name].copy()
        tensors[name][0] = np.nan
        names.append(name)

    directory = changed(golden, tmp_path, spoil)
    load_released(directory, "float32", part="vision")
    with pytest.raises(InputError, match=f"not finite: {re.escape(names[0])}"):
        load_released(directory, "float32", part="language")


def test_a_half_in_8_bits_and_a_weight_of_it_that_is_not_finite(golden, tmp_path):
    given = {"part": "language", "quantise": "w8a8", "cache": "float8", "skip_blocks": False}
    model, _ = load_released(golden / CASE, "float32", **given)
    assert flatten(model)["lm.layers.mlp.up.weight.int8"].dtype == np.int8
    runtime = model.runtime
    assert (model.config.quantised, runtime.cache, runtime.skip_blocks) == ("w8a8", "float8", False)
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    directory = changed(golden, tmp_path, lambda tensors: tensors.update({name: tensors[name] * np.float32(np.inf)}))
    with pytest.raises(InputError, match=f"not finite: {re.escape(name)}"):
        load_released(directory, "float32", part="language", quantise="int8")


def test_what_the_other_half_lacks_is_found(golden, tmp_path):
    directory = changed(golden, tmp_path, lambda tensors: tensors.pop("language_model.model.norm.weight"))
    with pytest.raises(InputError, match=r"missing: language_model\.model\.norm\.weight"):
        load_released(directory, "float32", part="vision")
    with pytest.raises(InputError, match="part is 'llm'; use one of all, vision, language"):
        load_released(golden / CASE, part="llm")
