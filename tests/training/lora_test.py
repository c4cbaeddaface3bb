"""Adapters in training: any mesh equals one device, resumed equals uninterrupted, the base is neither trained nor
stored again, and the reference is the base itself.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import internvl_jax as ivl
from checkpoint_convert import convert, read_adapter
from internvl_jax.data.rows.pipeline import Pipeline
from internvl_jax.errors import InputError, Stopped
from internvl_jax.inference import read_values
from internvl_jax.models import UNUSED_PARTS, AdaptedWeight, LoraConfig, plain_path
from internvl_jax.sharding import flatten, locate, read_specs
from internvl_jax.training import LoraGroup, LoraSettings, train, with_adapter
from internvl_jax.training.run import program as programs
from internvl_jax.training.run import setup
from internvl_jax.training.run.adapting import plain_params
from internvl_jax.training.run.initial import read_initial
from internvl_jax.validation import read_lines
from tests.programs import build, save_start
from tests.training import toy


def with_lora(config, **changes):
    config.lora = dataclasses.replace(toy.LORA, **changes)
    return config


def config_of(start, workdir, **run):
    return with_lora(toy.config(start, workdir, **{"init_from": str(start / "start"), **run}))


def run_steps(start, steps=3, changes=(), **run):
    config = config_of(start, start / "unused", **run)
    config, processor = setup.prepare(with_lora(config, **dict(changes)))
    program = build(config)
    batches = Pipeline(setup.pipeline_config(config), processor).batches(config.run.rows)
    state = program.from_params(read_initial(config.run.init_from, program))
    before = jax.device_get(plain_params(state.params, config.model.lora))
    losses = []
    for _ in range(steps):
        state, metrics = program.step(state, program.place(next(batches)))
        losses.append(float(metrics["loss"]))
    return program, before, state, losses


@pytest.fixture(scope="module")
def reference(start):
    _, before, state, losses = run_steps(start, mesh="data=8")
    return before, jax.device_get(state), losses


SOAK = pytest.mark.soak


@pytest.mark.parametrize(
    ("mesh", "rules"),
    [
        ("fsdp=4,tensor=2", "fsdp_tp"),
        pytest.param("fsdp=8", "fsdp", marks=SOAK),
        pytest.param("data=2,fsdp=2,tensor=2", "fsdp_tp", marks=SOAK),
    ],
)
def test_any_mesh_equals_one_device(start, reference, mesh, rules):
    program, _, state, losses = run_steps(start, mesh=mesh, rules=rules)
    np.testing.assert_allclose(losses, reference[2], rtol=1e-5)
    for path, value in state.params.items():
        np.testing.assert_allclose(value, reference[1].params[path], atol=1e-5, rtol=0, err_msg=path)
    assert program.step._cache_size() == 1
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b.sharding, placed, program.abstract))


def test_the_base_stays_and_the_optimizer_knows_adapters_alone(reference):
    before, state, _ = reference
    for path, value in state.params.items():
        if (plain := plain_path(path)) in before:
            np.testing.assert_array_equal(value, before[plain], err_msg=path)
    trained = {
        path for path in state.params if path.endswith((".weight.a", ".weight.b")) or path.startswith("projector.")
    }
    assert set(state.opt_state[1].mu) == trained
    assert all(np.any(state.params[path] != 0) for path in trained if path.endswith(".b"))
    # Rows that a layer does not have stay 0, and have no scale.
    a, scale = (state.params[f"lm.layers.mlp.up.weight.{name}"] for name in ("a", "scale"))
    assert not np.any(a[1, 1:]) and not np.any(scale[1, 1:]) and scale[1, 0] == 2.0 and scale[0, 0] == 2.0
    np.testing.assert_allclose(state.params["lm.layers.attn.q.weight.scale"][0], 3.0)


def test_resumed_equals_uninterrupted_and_a_checkpoint_holds_the_adapter(start, tmp_path):
    whole = config_of(start, tmp_path / "whole", mesh="data=8", steps=4)
    train(whole)
    parts = config_of(start, tmp_path / "parts", mesh="data=8", steps=4)
    with pytest.raises(Stopped):
        train(parts, stop=lambda step: step == 2)
    train(parts)
    ends = [ivl.load(folder, "float32")[0] for folder in (tmp_path / "whole", tmp_path / "parts")]
    one, other = (flatten(model) for model in ends)
    assert all((one[path] == other[path]).all() for path in one) and ends[0].config.lora is not None
    stored = read_specs(locate(tmp_path / "whole"))
    assert all(plain_path(path) is None or path.startswith("projector.") for path in stored)
    assert len(stored) < len(one)

    # As PEFT has it, and merged: the same adapter, and the same weights as of the model with it.
    convert(tmp_path / "whole", tmp_path / "adapter", "peft-hf")
    plain = dataclasses.replace(ends[0].config, lora=None)
    adapter = read_adapter(tmp_path / "adapter", plain)
    assert adapter.lora == ends[0].config.lora
    for path, value in adapter.params.items():
        np.testing.assert_array_equal(value, one[path], err_msg=path)
    convert(tmp_path / "whole", tmp_path / "merged", "hf")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    a, b, scale = (np.asarray(one[f"lm.layers.mlp.up.weight.{part}"], np.float64)[1] for part in ("a", "b", "scale"))
    np.testing.assert_allclose(found[name], one["lm.layers.mlp.up.weight.base"][1] + (b * scale) @ a, atol=1e-6)

    # A base that is not what it was is refused.
    config = tmp_path / "whole" / "config.json"
    values = read_values(tmp_path / "whole")
    config.write_text(json.dumps(values | {"base": values["base"] | {"digest": "0"}}))
    for use in (lambda: ivl.load(tmp_path / "whole", "float32"), lambda: train(whole)):
        with pytest.raises(InputError, match="is not what it was"):
            use()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "^nothing$"}, "lora.targets.*finds no weight"),
        ({"targets": "^lm"}, "lora.targets.*finds lm.embed, which is no matrix, so PEFT would take no adapter of it"),
        ({"targets": "^vit|projector"}, "lora.targets.*finds vit.patch, which is no matrix"),
        ({"whole": "^nothing$"}, "lora.whole.*finds no parameter"),
        ({"targets": "("}, "lora.targets.*no regular expression"),
        ({"groups": (LoraGroup("("),)}, "lora.groups.*no regular expression"),
        ({"rank": -1}, "lora.rank"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(start, changes, message):
    with pytest.raises(InputError, match=message):
        setup.prepare(with_lora(toy.config(start, start / "unused", init_from=str(start / "start")), **changes))


def test_a_reference_is_the_base_and_what_is_trained_whole():
    """A state's own base, but what is trained whole as the reference had it, and nothing of a Flash model."""
    lora = LoraConfig((AdaptedWeight("lm.layers.attn.q", ((2,),), ((4.0,),)),), ("projector.norm.scale",))
    names = ("lm.layers.attn.q.weight.base", "lm.layers.attn.q.weight.a", "projector.norm.scale", "router.head.weight")
    found = programs._whole_reference(dict.fromkeys(names, "now"), {"projector.norm.scale": "before"}, lora)
    assert found == {"lm.layers.attn.q.weight": "now", "projector.norm.scale": "before"}


def test_a_run_with_adapters_needs_a_model_and_experts_have_no_dropout(start):
    with pytest.raises(InputError, match=r"run\.init_from"):
        setup.prepare(with_lora(toy.config(start, start / "unused")))
    config = with_lora(toy.config(start, start / "unused", toy.MOE, init_from="x"), targets="experts", dropout=0.1)
    with pytest.raises(InputError, match="dropout"):
        build(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "freeze vit.layers.attn.proj, so its adapter would not be trained"),
        (
            {"targets": LoraSettings.targets, "whole": r"^vit\.layers\.norm1"},
            "freeze vit.layers.norm1.* lora.whole is to",
        ),
    ],
)
def test_what_a_stage_leaves_as_it_is_gets_no_adapter(start, tmp_path, changes, message):
    """GSPO, of the tower."""
    with pytest.raises(InputError, match=rf"^optim\.groups {message}"):
        setup.build(with_lora(toy.gspo_config(start, tmp_path), **changes))


def test_a_router_is_trained_whole_beside_nothing_else(tmp_path):
    """Of it, what the objective has no gradient for stays frozen; other adapters would stay as they began."""
    config = toy.router_config(tmp_path, tmp_path)
    config.lora = LoraSettings(whole=r"^router\.")
    assert "router.head.weight" in setup.build(config).abstract.opt_state[1].mu
    config.lora.rank = 2
    with pytest.raises(InputError, match=r"^optim\.groups freeze lm\.layers\.attn\.k, so its adapter"):
        setup.build(config)
    config = toy.router_config(tmp_path, tmp_path)
    config.lora = LoraSettings(whole=UNUSED_PARTS)
    with pytest.raises(InputError, match=r"^optim\.groups freeze router\.pooling.*, which lora\.whole is to train"):
        setup.build(config)


def test_a_new_branch_is_not_frozen_at_random(tmp_path):
    """What a base lacks of a Flash model beside adapters, but for the router, which is a later stage's."""
    base = {"format": 1, "model": toy.BASE.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(base))
    program = setup.build(with_lora(toy.consistency_config(tmp_path, tmp_path)))
    with pytest.raises(InputError, match=r"has no compressed branch: .* train it whole with lora\.whole='\^compressed"):
        read_initial(str(tmp_path), program, extend=True)


def metrics(workdir):
    return [line for _, line in read_lines(workdir / "metrics.jsonl")]


@pytest.mark.soak
def test_dropout_acts_while_training(start, reference):
    """Not in the first step, where the second factor is 0."""
    *_, losses = run_steps(start, changes={"dropout": 0.5}, mesh="data=8")
    assert losses[0] == pytest.approx(reference[2][0], rel=1e-6)
    assert abs(losses[2] - reference[2][2]) > 1e-6


@pytest.mark.soak
def test_preferences_begin_at_the_reference(start, tmp_path):
    config = with_lora(toy.mpo_config(start, tmp_path / "mpo", steps=3, mesh="data=8"))
    train(config)
    found = metrics(tmp_path / "mpo")
    assert abs(found[0]["chosen_reward"]) < 1e-5 and abs(found[0]["rejected_reward"]) < 1e-5
    assert found[2]["reward_margin"] != 0 and np.isfinite(found[2]["loss"])


@pytest.mark.soak
def test_reinforcement_samples_the_adapted_model_beside_its_base(start, tmp_path):
    config = with_lora(toy.gspo_config(start, tmp_path / "gspo", steps=4, mesh="fsdp=8"), targets=LoraSettings.targets)
    config.stage.kl = 0.1
    train(config)
    found = metrics(tmp_path / "gspo")
    assert abs(found[0]["kl"]) < 1e-6 and found[3]["kl"] > 1e-6
    # What is sampled from in the second batch is what was trained in the first.
    assert max(line["max_sampler_difference"] for line in found) < 1e-3
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, steps=6))
    with pytest.raises(Stopped):
        train(toy.with_run(config, workdir=str(tmp_path / "again")), stop=lambda step: step == 3)


@pytest.mark.soak
def test_consistency_teaches_an_adapter_beside_its_teacher(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    toy.write_boards(folder)
    save_start(toy.vico_config(folder, folder / "unused", "ntp", ""), folder / "base")
    config = with_lora(toy.consistency_config(folder, tmp_path / "run", steps=4), whole=r"^(projector|compressed)\.")
    train(config)
    found = metrics(tmp_path / "run")
    assert abs(found[0]["kl_full"]) < 1e-5 and found[0]["kl_compressed"] > 1e-4
    assert found[3]["loss"] < found[0]["loss"]
    model, _ = ivl.load(tmp_path / "run", "float32")
    assert model.config.lora is not None and model.config.flash is not None


@pytest.mark.soak
def test_beside_a_base_in_8_bits(start, tmp_path):
    """The same bits whether the base becomes integers as it is read or is stored so; resumed as uninterrupted; on a
    mesh as on one device; and what is loaded is what was trained.
    """
    convert(start / "start", tmp_path / "int8", quantise="int8")
    ends, losses = [], []
    for name, base, mesh, stop in (
        ("read", start / "start", "data=8", None),
        ("stored", tmp_path / "int8", "data=8", 2),
        ("mesh", start / "start", "fsdp=8", None),
    ):
        run = {"init_from": str(base), "mesh": mesh, "steps": 4}
        config = with_lora(toy.config(start, tmp_path / name, **run), quantise="int8" if name != "stored" else "")
        if stop is not None:
            config.model = ivl.load(base, "float32")[0].config
            with pytest.raises(Stopped):
                train(config, stop=lambda step: step == 2)
        train(config)
        model, _ = ivl.load(tmp_path / name, "float32")
        assert model.config.quantised == "int8" and model.config.lora is not None
        ends.append(flatten(model))
        losses.append([line["loss"] for line in metrics(tmp_path / name)])
    assert losses[0] == losses[1] and losses[0][3] < losses[0][0]
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-5)
    base = flatten(ivl.load(tmp_path / "int8", "float32")[0])
    for path, value in ends[0].items():
        np.testing.assert_array_equal(value, ends[1][path], err_msg=path)
        if path.endswith((".int8", ".int8_scale")):
            np.testing.assert_array_equal(value, base[plain_path(path)], err_msg=path)
    convert(tmp_path / "read", tmp_path / "adapter", "peft-hf")
    with pytest.raises(InputError, match="an adapter beside quantised weights, which can't be merged"):
        convert(tmp_path / "read", tmp_path / "merged", "hf")
    convert(start / "start", tmp_path / "merged", "hf", adapter=tmp_path / "adapter")


def test_weights_in_8_bits_are_not_trained():
    with pytest.raises(InputError, match=r"can't be trained; set lora\.rank"):
        with_adapter(dataclasses.replace(toy.MODEL, quantised="int8"), LoraSettings())
    with pytest.raises(InputError, match=r"lora\.whole: lm\.layers\.mlp\.up\.weight is quantised"):
        with_adapter(toy.MODEL, LoraSettings(rank=2, whole="mlp.up", targets="attn", quantise="int8"))
    for stored in ("int8", "w8a8"):  # rounded inputs have no gradient
        base = dataclasses.replace(toy.MODEL, quantised=stored)
        assert with_adapter(base, LoraSettings(rank=2, targets="attn")).quantised == "int8"
