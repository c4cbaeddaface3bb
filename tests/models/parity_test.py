"""Equality with the recorded outputs and gradients of the released PyTorch code, in float32 with exact products.

Tolerances: 1e-4 absolute for hidden states and logits, 1e-5 for single modules, 1e-4 relative for losses and gradients.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from checkpoint_convert import load_adapted
from checkpoint_convert.released import load_bare
from checkpoint_convert.rows import to_released
from checkpoint_convert.tables import TABLES
from internvl_jax.evaluation import compare_adapter
from internvl_jax.evaluation.parity import blocks, compare, image_token_id, read_case
from internvl_jax.losses import load_balancing, next_token
from internvl_jax.models import token_logprobs
from internvl_jax.sharding import bind, flatten

FAMILIES = ["qwen3", "qwen3moe", "gptoss"]
CASES = [
    "vit300m_github",
    "vit6b_github",
    *(f"chat_{family}_github" for family in FAMILIES),
    *(f"hf_{family}" for family in FAMILIES),
    "flash_qwen3_github",
]


def load(directory):
    inputs, outputs, meta = read_case(directory)
    return load_bare(directory, "float32", image_token_id(meta)), inputs, outputs


@pytest.mark.parametrize("case", CASES)
def test_outputs(golden, case):
    model, inputs, outputs = load(golden / case)
    report = compare(model, inputs, outputs)
    elsewhere = {"aux_loss", "aux_loss_raw_logits", "loss_with_aux"}  # in the test of gradients
    recorded = outputs.keys() - elsewhere - {"logits_positions"}
    exact = {name for name in recorded if outputs[name].dtype.kind in "bi"}  # tokens and decisions
    assert report.keys() == (recorded - exact) | {f"{name}_equal" for name in exact}
    assert exact or case.startswith("vit")
    assert all(report[f"{name}_equal"] for name in exact)
    errors = {name: error for name, error in report.items() if not name.endswith("_equal")}
    modules = ("hidden_state_0", "vit_embeds", "image_features", "llm_hidden_0", "loss")
    # GPT-OSS's weights are loud: float32 itself is 6e-5 from float64.
    outputs_limit, modules_limit = (3e-4, 3e-5) if "gptoss" in case else (1e-4, 1e-5)
    limits = {name: modules_limit if name.startswith(modules) else outputs_limit for name in errors}
    # Pooling enlarges the tower's float32 noise: 4e-6 to 1.7e-5 by the order of sums that a CPU's kernels take. What
    # gating itself adds is in the next test.
    limits |= dict.fromkeys(limits.keys() & {"gate_probs", "quantiles"}, 3e-5)
    assert not {name: error for name, error in errors.items() if not error <= limits[name]}


SOAK = pytest.mark.soak
ADAPTERS = [
    "hf_qwen3/all_rslora",
    *(pytest.param(f"hf_qwen3/{name}", marks=SOAK) for name in ("lm", "projector_whole")),
    *(pytest.param(f"chat_qwen3_github/{name}", marks=SOAK) for name in ("adapter", "official_wrapped")),
]


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_apart_and_merged(golden, name):
    """Logits, greedy tokens and every tensor that merging changes, as PEFT has them."""
    case, folder = golden / name.partition("/")[0], golden / f"lora_{name}"
    inputs, _, meta = read_case(case)
    model = load_adapted(case, folder, "float32", image_token_id(meta))
    report = compare_adapter(model, folder, inputs, True, None, None)
    changed = load_file(folder / "merged.safetensors").keys()
    assert len(changed) >= 12 and changed <= report.keys()
    for merged in ("", "merged_"):
        assert report[f"{merged}greedy_tokens_equal"] is True and report[f"{merged}logits"] < 2e-4
    assert report["merged_names_equal"] is True and max(report[tensor] for tensor in changed) < 1e-6


def test_gating_of_recorded_features(golden):
    model, _, outputs = load(golden / "flash_qwen3_github")
    probability_G2 = jax.nn.softmax(model.router.gate(jnp.asarray(outputs["pooled"])))
    np.testing.assert_allclose(probability_G2, outputs["gate_probs"], rtol=0, atol=1e-6)


def close(found, norms, grads):
    """Gradients beside recorded norms of all and recorded values of the small ones; names are the checkpoint's."""
    assert found.keys() == norms.keys()
    largest = max(float(norm) for norm in norms.values())
    for name, norm in norms.items():
        # A gradient that is mathematically zero (a bias before a softmax) is noise on both sides.
        assert np.linalg.norm(found[name]) == pytest.approx(float(norm), rel=1e-4, abs=1e-7 * largest), name
    for name, grad in grads.items():
        assert np.max(np.abs(found[name] - grad)) <= 1e-4 * np.max(np.abs(grad)) + 1e-7 * largest, name


def recorded(directory):
    with np.load(directory / "grad_norms.npz") as norms, np.load(directory / "grads.npz") as grads:
        return dict(norms), dict(grads)


@pytest.mark.parametrize("case", ["vit300m_github", "vit6b_github"])
def test_gradients_of_the_towers(golden, case):
    tower, inputs, _ = load(golden / case)
    graphdef, params = nnx.split(tower, nnx.Param)[0], flatten(tower)
    tiles = jnp.asarray(inputs["pixel_values"].transpose(0, 2, 3, 1))

    def loss(params):
        return jnp.sum(bind(graphdef, params)(tiles) * inputs["grad_weight"])

    grads = jax.device_get(jax.jit(jax.grad(loss))(params))
    close(dict(to_released(TABLES["github", "vit"].rows, grads)), *recorded(golden / case))


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_of_the_whole_model(golden, family):
    directory = golden / f"chat_{family}_github"
    model, inputs, outputs = load(directory)
    graphdef, params = nnx.split(model, nnx.Param)[0], flatten(model)
    tokens_BT, mask_BT = inputs["input_ids"].astype(np.int32), inputs["attention_mask"].astype(np.int32)
    real = inputs["pixel_values"].transpose(0, 2, 3, 1)[inputs["image_flags"] == 1]
    tiles_GHWC, tile_mask_G = blocks(tokens_BT, real, model.config)
    supervised_BT = inputs["labels"] != -100
    weights_BT = supervised_BT / np.sqrt(supervised_BT.sum(axis=1, keepdims=True))
    targets_BT = np.where(supervised_BT, inputs["labels"], 0)[:, 1:].astype(np.int32)
    positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)

    def loss(params, coefficient):
        model = bind(graphdef, params)
        tiles = jnp.asarray(tiles_GHWC), jnp.asarray(tile_mask_G)
        out = model(tokens_BT, *tiles, mask_BT, positions_BT, collect=("load",))
        logprobs_BT = token_logprobs(out.hidden_BTD[:, :-1], model.lm.head_VD, targets_BT, chunk=11)
        total, weight = next_token(logprobs_BT, jnp.asarray(weights_BT[:, 1:], jnp.float32))
        aux = 0.0
        if out.aux["load"] is not None:  # recorded over the batch as if it were one row
            load = (jnp.sum(part, axis=1, keepdims=True) for part in out.aux["load"])
            aux = load_balancing(*load, jnp.sum(mask_BT, keepdims=True)[0]).total
        return total / weight + coefficient * aux, aux

    program = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, aux), grads = program(params, 0.0)
    assert float(value) == pytest.approx(float(outputs["loss"]), rel=1e-5)
    grads = jax.device_get(grads)
    rows = TABLES["github", {"qwen3": "qwen3", "qwen3moe": "qwen3_moe", "gptoss": "gpt_oss"}[family]].rows
    close(dict(to_released(rows, grads)), *recorded(directory))
    if family != "qwen3":
        assert float(aux) == pytest.approx(float(outputs["aux_loss"]), rel=1e-5)
        config = json.loads((directory / "config.json").read_text())["llm_config"]
        (value, _), with_aux = program(params, config["router_aux_loss_coef"])
        assert float(value) == pytest.approx(float(outputs["loss_with_aux"]), rel=1e-5)
        with np.load(directory / "grad_norms_with_aux.npz") as norms:
            close(dict(to_released(rows, jax.device_get(with_aux))), dict(norms), {})
        return

    # The HF format splits what the GitHub one fuses; everything else is the same gradient under another name.
    hf = dict(to_released(TABLES["hf", "qwen3"].rows, grads))
    names = json.loads((golden / "hf_qwen3" / "model.safetensors.index.json").read_text())["weight_map"]
    assert hf.keys() == names.keys()
    norms, _ = recorded(directory)
    parts = [hf[f"vision_tower.encoder.layer.1.attention.{part}_proj.weight"] for part in "qkv"]
    fused = float(norms["vision_model.encoder.layers.1.attn.qkv.weight"])
    assert np.linalg.norm(parts) == pytest.approx(fused, rel=1e-4)


@pytest.mark.parametrize(("family", "tolerance"), [("qwen3", 1e-4), ("gptoss", 3e-4)])
def test_a_packed_row(golden, family, tolerance):
    """Three samples and padding in one row, as the official collator packs and weights them."""
    model, _, _ = load(golden / f"chat_{family}_github")
    inputs, outputs, norms = (
        dict(np.load(golden / "train_steps" / f"{family}_{part}.npz")) for part in ("inputs", "outputs", "grad_norms")
    )
    graphdef, params = nnx.split(model, nnx.Param)[0], flatten(model)
    tokens_BT, positions_BT = (inputs[name].astype(np.int32) for name in ("input_ids", "position_ids"))
    ends = inputs["cu_seqlens"][0, 1:-1]  # the last segment is padding
    segments_BT = np.zeros_like(tokens_BT)
    for segment, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), start=1):
        segments_BT[0, start:end] = segment
    real = inputs["pixel_values"].transpose(0, 2, 3, 1)[inputs["image_flags"] == 1]
    tiles = [jnp.asarray(part) for part in blocks(tokens_BT, real, model.config)]
    targets_BT = np.maximum(inputs["labels"], 0)[:, 1:].astype(np.int32)

    def losses(params):
        model = bind(graphdef, params)
        hidden_BTD = model(tokens_BT, *tiles, segments_BT, positions_BT).hidden_BTD
        logprobs_BT = token_logprobs(hidden_BTD[:, :-1], model.lm.head_VD, targets_BT, chunk=11)
        found = {}
        for weighting in ("token", "sample", "square"):
            total, weight = next_token(logprobs_BT, jnp.asarray(inputs[f"loss_weight_{weighting}"][:, 1:]))
            found[weighting] = total / weight
        return found["square"], (found, model.logits(hidden_BTD))

    (_, (found, logits_BTV)), grads = jax.jit(jax.value_and_grad(losses, has_aux=True))(params)
    assert np.max(np.abs(logits_BTV[:, : ends[-1]] - outputs["logits"])) < tolerance
    for weighting, value in found.items():
        assert float(value) == pytest.approx(float(outputs[f"loss_{weighting}"]), rel=1e-5)
    rows = TABLES["github", {"qwen3": "qwen3", "gptoss": "gpt_oss"}[family]].rows
    close(dict(to_released(rows, jax.device_get(grads))), norms, {})


def test_a_wrong_weight_is_noticed(golden, tmp_path):
    """The comparison itself: one transposed projection must show."""
    from safetensors.numpy import save_file

    directory = golden / "vit300m_github"
    tensors = load_file(directory / "model.safetensors")
    name = "encoder.layers.1.attn.proj.weight"
    save_file(tensors | {name: np.ascontiguousarray(tensors[name].T)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    _, inputs, outputs = load(directory)
    report = compare(load_bare(tmp_path, "float32", None), inputs, outputs)
    assert report["hidden_state_1"] < 1e-5 and report["hidden_state_2"] > 1e-2
