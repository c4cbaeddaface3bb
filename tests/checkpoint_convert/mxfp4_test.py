"""MXFP4 experts: every value exact, whole checkpoints equal to their dequantised twins, bad input named."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoint_convert import convert, describe, load_model
from checkpoint_convert.hf_config import read_config
from checkpoint_convert.mxfp4 import Mxfp4Row, dequantize
from checkpoint_convert.released import load_bare
from checkpoint_convert.rows import Row, to_released
from checkpoint_convert.tables import TABLES
from configs.models.sizes import SIZES
from internvl_jax.errors import InputError
from internvl_jax.models.language.families import kind_of
from internvl_jax.sharding import PRESETS, abstract, bind, flatten, make_mesh

EXPERTS = "mlp.experts"
PARTS = ("blocks", "scales")
WEIGHTS = [f"lm.layers.{EXPERTS}.{part}.weight" for part in ("gate_up", "down")]


@pytest.fixture(scope="module")
def case(request):
    folder = request.path.parents[1] / "golden" / "gptoss_mxfp4"
    with np.load(folder / "outputs.npz") as outputs, np.load(folder / "inputs.npz") as inputs:
        return load_file(folder / "model.safetensors"), dict(outputs), inputs["hidden_states"]


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj", "odd"])
def test_values_are_the_recorded_ones(case, name):
    stored, outputs, _ = case
    prefix = name if name == "odd" else f"model.layers.0.mlp.experts.{name}"
    values = dequantize(stored[f"{prefix}_blocks"], stored[f"{prefix}_scales"])
    assert values.dtype == ml_dtypes.bfloat16
    assert np.array_equal(values.swapaxes(1, 2), outputs[name])


def test_every_byte_under_every_scale_is_what_the_format_says():
    """One value at a time, from the definition: sign, two bits of exponent with bias 1, one of mantissa."""
    scales = np.arange(255, dtype=np.uint8)
    blocks = np.arange(256, dtype=np.uint8).reshape(16, 16)
    values = dequantize(np.broadcast_to(blocks, (255, 16, 16)), np.repeat(scales[:, None], 16, axis=1))
    values = values.astype(np.float64).reshape(255, 256, 2)
    for half in (0, 1):
        code = np.arange(256) >> 4 * half & 15
        exponent, mantissa = code >> 1 & 3, code & 1
        magnitude = np.where(exponent, (1 + mantissa / 2) * 2.0 ** (exponent - 1), mantissa / 2)
        wanted = np.where(code & 8, -magnitude, magnitude) * 2.0 ** (scales[:, None].astype(float) - 127)
        wanted = np.where(np.abs(wanted) < 2.0**128, wanted, np.copysign(np.inf, wanted))  # bfloat16 ends there
        assert np.array_equal(values[..., half], wanted)
    assert np.isnan(dequantize(blocks, np.full(16, 255, np.uint8)).astype(np.float32)).all()


def write(directory, golden, case, form, packed):
    """The recorded tiny GPT-OSS with the recorded experts in every layer, in another order in each of them."""
    stored, outputs, _ = case
    source = golden / {"github": "chat_gptoss_github", "hf": "hf_gptoss"}[form]
    values, tensors = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
    text = values["llm_config" if form == "github" else "text_config"]
    text["intermediate_size"] = 96
    if packed:
        text["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    for layer in range(text["num_hidden_layers"]):
        order = np.roll(np.arange(4), layer)
        prefix = f"language_model.model.layers.{layer}.{EXPERTS}"
        for name in ("gate_up_proj", "down_proj"):
            recorded = f"model.layers.0.{EXPERTS}.{name}"
            tensors[f"{prefix}.{name}_bias"] = stored[f"{recorded}_bias"][order]
            if packed:
                del tensors[f"{prefix}.{name}"]
                tensors |= {f"{prefix}.{name}_{part}": stored[f"{recorded}_{part}"][order] for part in PARTS}
            else:
                tensors[f"{prefix}.{name}"] = outputs[name][order].astype(ml_dtypes.bfloat16)
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(values))
    return directory


@pytest.fixture
def twins(tmp_path, golden, case):
    """A checkpoint in MXFP4 and the same one dequantised."""
    return [write(tmp_path / name, golden, case, "hf", name == "packed") for name in ("packed", "plain")]


def same(found, wanted) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[path], wanted[path]) for path in wanted)


@pytest.mark.parametrize("form", ["github", "hf"])
def test_a_checkpoint_loads_as_its_dequantised_twin(tmp_path, golden, case, form):
    packed, plain = (write(tmp_path / str(kind), golden, case, form, kind) for kind in (True, False))
    found, wanted = (flatten(load_model(d, image_token_id=312)) for d in (packed, plain))
    assert same(found, wanted) and found[WEIGHTS[0]].dtype == jnp.bfloat16
    assert found[WEIGHTS[0]].shape == (4, 4, 2, 96, 64) and found[WEIGHTS[1]].shape == (4, 4, 64, 96)


@pytest.mark.parametrize("mesh", [{"expert": 4, "fsdp": 2}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}])
def test_shards_are_slices_of_the_whole(twins, mesh):
    """With eight parts a shard holds 8 of the 32 values of a block."""
    whole = flatten(load_model(twins[1], "float32"))
    rules = PRESETS["fsdp_tp" if "tensor" in mesh else "fsdp"]
    params = flatten(load_model(twins[0], "float32", make_mesh(mesh), rules))
    assert same({path: np.asarray(array) for path, array in params.items()}, whole)
    for path in WEIGHTS:
        assert params[path].addressable_shards[0].data.size < whole[path].size


def test_a_slice_reads_only_the_blocks_it_touches(case):
    """Everything else is scaled by 'no number' and would show."""
    stored, outputs, _ = case
    prefix = f"model.layers.0.{EXPERTS}.down_proj"
    blocks, scales = stored[f"{prefix}_blocks"], stored[f"{prefix}_scales"].copy()
    index = (slice(1, 3), slice(5, 23), slice(40, 61))
    scales[:1], scales[3:], scales[:, :5], scales[:, 23:], scales[..., :1], scales[..., 2:] = [255] * 6
    out = np.empty((2, 18, 21), ml_dtypes.bfloat16)
    Mxfp4Row("experts.{i}.w", "w", "e d f -> e d f").read([blocks, scales], (7, 4, 64, 96), index, out)
    assert np.array_equal(out, outputs["down_proj"].swapaxes(1, 2)[index])


def test_converted_it_is_bfloat16(twins, tmp_path):
    reports = [convert(directory, tmp_path / f"{directory.name}_ours") for directory in twins]
    assert reports[0].tensors == reports[1].tensors + 8 and reports[0].bytes < reports[1].bytes
    found, wanted = (flatten(load_bare(tmp_path / f"{d.name}_ours", "float32", None)) for d in twins)
    assert same(found, wanted)


def test_a_description_counts_parameters_not_bytes(twins):
    packed, plain = (describe(directory, SIZES) for directory in twins)
    assert packed["parameters"] == plain["parameters"]
    assert packed["dtypes"]["mxfp4"] == 4 * 4 * 3 * 64 * 96 and packed["bytes"] < plain["bytes"]


def test_it_is_not_written():
    """Plain rows write; these have no values for the two names."""
    params = {WEIGHTS[1]: np.zeros((1, 4, 64, 96), np.float32)}
    with pytest.raises(ValueError, match="shorter"):
        dict(to_released([Mxfp4Row("{i}.w", WEIGHTS[1], "e d f -> e d f")], params))
    assert [name for name, _ in to_released([Row("{i}.w", WEIGHTS[1], "e f d -> e d f")], params)] == ["0.w"]


def test_moe_block_equals_the_recorded_one(case, golden):
    stored, outputs, hidden_BTD = case
    config = dataclasses.replace(read_config(golden / "hf_gptoss").model(None).text, mlp=96)
    graphdef, specs = abstract(lambda rngs: kind_of(config).feed_forward(config, rngs))
    rows = {row.target: row for row in TABLES["github", "gpt_oss_mxfp4"].rows}
    params = {}
    for path, spec in specs.items():
        row = rows[f"lm.layers.mlp.{path}"]
        names = [name.format(i=0).removeprefix("language_model.") for name in row.templates]
        shape, everything = (1, *spec.shape), (slice(None),) * len(spec.shape)
        params[path] = np.empty(spec.shape, np.float32)
        row.read([stored[name] for name in names], shape, everything, params[path])
    out_BTD, _ = jax.jit(lambda params, x: bind(graphdef, params)(x))(params, hidden_BTD)
    assert np.max(np.abs(out_BTD - outputs["mlp_output"])) <= 1e-5


def break_it(directory, change):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, file)
    return directory


NAME = f"language_model.model.layers.2.{EXPERTS}.down_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{NAME}_scales"), f"missing: {NAME}_scales"),
        (
            lambda t: t.update({f"{NAME}_blocks": t[f"{NAME}_blocks"][..., :8]}),
            r"\[4, 64, 3, 8\] instead of \[4, 64, 3, 16\]",
        ),
        (
            lambda t: t.update({f"{NAME}_scales": t[f"{NAME}_scales"][:, :, :2]}),
            r"\[4, 64, 2\] instead of \[4, 64, 3\]",
        ),
        (
            lambda t: t.update({f"{NAME}_scales": t[f"{NAME}_scales"].astype(np.float32)}),
            "of another type: .*_scales: float32",
        ),
        (lambda t: t.update({f"{NAME}_bias": np.zeros((4, 64), np.uint8)}), "of another type: .*_bias: uint8"),
        (lambda t: t.update({f"{NAME}_scales": np.full((4, 64, 3), 255, np.uint8)}), f"not finite: {NAME}_blocks"),
        (lambda t: t.update(extra_blocks=np.zeros(3, np.uint8)), "not expected: extra_blocks"),
    ],
)
def test_bad_tensors_are_named(twins, change, message):
    with pytest.raises(InputError, match=message) as error:
        load_model(break_it(twins[0], change))
    assert "\n" not in str(error.value)


def test_the_config_has_to_say_so(twins):
    config = twins[0] / "config.json"
    values = json.loads(config.read_text())
    values["text_config"]["quantization_config"]["quant_method"] = "fp8"
    config.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"text_config.quantization_config.quant_method is 'fp8'.*'mxfp4'"):
        load_model(twins[0])
    values["quantization_config"] = values["text_config"].pop("quantization_config") | {"quant_method": "mxfp4"}
    config.write_text(json.dumps(values))
    assert read_config(twins[0]).mxfp4
    del values["quantization_config"]
    config.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"missing: .*gate_up_proj.*; not expected: .*_blocks"):
        load_model(twins[0])
