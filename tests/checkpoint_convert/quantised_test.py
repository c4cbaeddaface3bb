"""Checkpoints in 8 bits: written, loaded again, the same bits however they come about; and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoint_convert import convert, describe, load_bare
from checkpoint_convert.adapters import Adapter, attached
from internvl_jax.errors import InputError
from internvl_jax.models import AdaptedWeight, LoraConfig, read_plain
from internvl_jax.models.transforms import quantised_weights
from internvl_jax.sharding import flatten, make_mesh, refer, write_params
from tests.conftest import GOLDEN

NAME = "hf_qwen3"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The case in our format, as it is and in 8 bits."""
    folder = tmp_path_factory.mktemp("quantised")
    convert(GOLDEN / NAME, folder / "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantised_weights, "_TOGETHER", 1000)  # in several pieces
        convert(GOLDEN / NAME, folder / "int8", quantise="int8")
    return folder


def params_of(directory, *args, **how):
    return flatten(load_bare(directory, "float32", None, *args, **how))


def same(one, other):
    assert one.keys() == other.keys()
    for path, value in one.items():
        assert value.dtype == other[path].dtype
        np.testing.assert_array_equal(value, other[path], err_msg=path)


def test_read_and_written_the_same_bits(folders, golden):
    """From a released checkpoint, from ours, on a mesh that spreads inputs, and as it was written."""
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    expected = params_of(golden / NAME, quantise="int8")
    assert expected["lm.layers.attn.q.weight.int8"].dtype == np.int8 and "lm.layers.attn.q.weight" not in expected
    for found in (
        params_of(golden / NAME, mesh, "fsdp_tp", quantise="int8"),
        params_of(folders / "plain", quantise="int8"),
        params_of(folders / "plain", mesh, "fsdp_tp", quantise="int8"),
        params_of(folders / "int8"),
        params_of(folders / "int8", mesh, "fsdp_tp"),
    ):
        same(found, expected)
    written = json.loads((folders / "int8" / "config.json").read_text())["model"]
    assert written["quantised"] == "int8"
    assert "quantised" not in json.loads((folders / "plain" / "config.json").read_text())["model"]


def test_a_description_names_the_model_that_was_rounded(folders):
    sizes = {"ours": load_bare(folders / "plain", "float32", None).config}
    plain, ours = (describe(folders / name, sizes) for name in ("plain", "int8"))
    assert plain["size"] == ours["size"] == "ours" and plain["parameters"] == ours["parameters"]
    assert ours["dtypes"].keys() == {"int8", "float32"} and ours["bytes"] < plain["bytes"]


def test_weights_of_another_width_are_refused(folders, tmp_path):
    """And not read as far as they go."""
    shutil.copytree(folders / "plain", tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text())
    values["model"]["text"]["mlp"] -= 8
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"mlp\.up\.weight\.int8 is missing"):
        load_bare(tmp_path, "float32", None, quantise="int8")


def test_what_an_adapter_has_whole_is_rounded_in_place_of_its_base_s(folders, tmp_path):
    """In a folder that names its base; what it would be merged into first is told."""
    base = load_bare(folders / "plain", "float32", None)
    plain, up, q = flatten(base), "lm.layers.mlp.up.weight", "lm.layers.attn.q.weight"
    layers, *outputs, width = plain[q].shape
    adapted = AdaptedWeight("lm.layers.attn.q", ((1,),) * layers, ((1.0,),) * layers)
    config = dataclasses.replace(base.config, lora=LoraConfig((adapted,), whole=(up,)))
    values = json.loads((folders / "plain" / "config.json").read_text())
    values |= {"model": config.to_dict(), "base": refer(folders / "plain")}
    (tmp_path / "config.json").write_text(json.dumps(values))
    shapes = {"a": (layers, 1, width), "b": (layers, *outputs, 1), "scale": (layers, 1)}
    write_params(tmp_path / "params", {up: -plain[up]} | {f"{q}.{name}": jnp.ones(shapes[name]) for name in shapes})

    found, rounded = params_of(tmp_path, quantise="int8"), params_of(folders / "int8")
    np.testing.assert_array_equal(found[f"{up}.int8"], -rounded[f"{up}.int8"])
    np.testing.assert_array_equal(found[f"{up}.int8_scale"], rounded[f"{up}.int8_scale"])
    np.testing.assert_array_equal(found[f"{q}.base.int8"], rounded[f"{q}.int8"])
    wanted = {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for path, value in rounded.items()}
    with pytest.raises(InputError, match="to be quantised with it merged; merge it first"):
        read_plain(tmp_path, wanted)


def test_an_adapter_is_attached_to_the_half_that_is_there_and_to_no_integers():
    """Its scales stay exact."""
    up, q, place = (
        "lm.layers.mlp.up.weight",
        "lm.layers.attn.q.weight",
        jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    )
    lora = LoraConfig((AdaptedWeight("lm.layers.attn.q", ((1,),), ((1.0,),)),), whole=(up,))
    params = {path: np.ones((1, 1), np.float32) for path in (up, f"{q}.a", f"{q}.b", f"{q}.scale")}
    adapter, half = Adapter(lora, params), jnp.dtype(jnp.bfloat16)
    assert attached({}, adapter, {}, half) == {}  # of a vision half
    found = attached({}, adapter, dict.fromkeys(params, place), half)
    exact = {path for path, value in found.items() if value.dtype == np.float32}
    assert exact == {f"{q}.scale"} and found.keys() == params.keys()
    with pytest.raises(InputError, match=r"has lm\.layers\.mlp\.up\.weight whole, and the model has it quantised"):
        attached({}, adapter, {f"{up}.int8": place, f"{up}.int8_scale": place}, half)


def test_integers_keep_their_dtype_and_may_be_multiplied_otherwise(folders, tmp_path):
    convert(folders / "int8", tmp_path / "half", dtype="bfloat16", quantise="w8a8")
    model = load_bare(tmp_path / "half", "bfloat16", None)
    found, expected = flatten(model), flatten(load_bare(folders / "int8", "bfloat16", None))
    assert model.config.quantised == "w8a8"
    same(found, expected)
    assert {path.rpartition(".")[2]: value.dtype.name for path, value in found.items() if ".q.weight" in path} == {
        "int8": "int8",
        "int8_scale": "float32",
    }


@pytest.mark.parametrize(
    ("source", "how", "message"),
    [
        ("int8", {"to": "hf"}, "--to=hf has no quantised weights; convert the checkpoint that .*int8 was made of"),
        ("plain", {"to": "github", "quantise": "int8"}, "--to=github has no quantised weights; convert it without"),
        ("int8", {"adapter": "lora_hf_qwen3/lm"}, "is quantised; merge the adapter into what it was made of"),
        ("vit300m_github", {"quantise": "int8"}, "a vision tower alone, which stays as it is"),
    ],
)
def test_what_has_no_meaning_is_refused(folders, golden, tmp_path, source, how, message):
    source = folders / source if (folders / source).exists() else golden / source
    if "adapter" in how:
        how = {"adapter": golden / how["adapter"]}
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_a_name_that_nobody_knows(golden):
    with pytest.raises(InputError, match="quantise is 'int4'; use one of int8, w8a8, mxfp4"):
        load_bare(golden / NAME, "float32", None, quantise="int4")
