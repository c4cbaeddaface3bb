"""What no run can have is refused before anything is built; a workdir belongs to one config."""

import dataclasses
import json

import jax
import pytest

from internvl_jax.errors import InputError
from internvl_jax.files import MARK
from internvl_jax.sharding import make_mesh, parse_mesh
from internvl_jax.training import ConsistencyConfig, GspoConfig, MpoConfig, RouterConfig, train, with_adapter
from internvl_jax.training.config import Group
from internvl_jax.training.run import setup
from internvl_jax.training.run.initial import read_reference
from internvl_jax.training.run.program import in_products
from internvl_jax.training.run.setup import check, identity
from internvl_jax.validation import differences
from tests.programs import build
from tests.training import toy


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "run.steps is 0"),
        ({"steps": 2.5}, "run.steps is 2.5; it must be a whole number"),
        ({"seed": -1}, "run.seed is -1"),
        ({"workdir": ""}, "run.workdir is empty"),
        (
            {"workdir": "gs://bucket/run"},
            "run.workdir is 'gs://bucket/run'; a run appends to its files, so it needs a fol",
        ),
        ({"micro_batches": 3}, "run.micro_batches 3 does not divide run.rows 8"),
        ({"dtype": "float16"}, "run.dtype is 'float16'"),
        ({"remat": "some"}, "run.remat is 'some'; it must be one of 'none'"),
        ({"balance": 0.001}, "run.balance is 0.001 but the model has no experts"),
        ({"balance": -1.0}, "run.balance is -1.0; it must be a number from 0"),
    ],
)
def test_impossible_values_are_refused(data, change, sentence):
    with pytest.raises(InputError, match=sentence):
        check(toy.with_run(toy.config(data, data / "w"), **change))


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("section", "field", "values"),
    [
        ("optim", "learning_rate", (0.0, -1e-3, NAN, INFINITY, "1e-3", True)),
        ("optim", "warmup_ratio", (-0.1, 100, NAN, INFINITY)),
        ("optim", "weight_decay", (-0.1, 2.0, NAN, -INFINITY)),
        ("optim", "beta1", (-1.0, 1.0, NAN)),
        ("optim", "beta2", (-1.0, 1.0, NAN)),
        ("optim", "eps", (0.0, -1e-8, NAN)),
        ("optim", "clip_norm", (0.0, -1.0, NAN, INFINITY)),
        ("optim", "schedule", ("linear", None)),
        ("optim", "groups", ((Group(".*", learning_rate=-1),), (Group(".*", weight_decay=NAN),), (".*",))),
        ("data", "weighting", ("tokens", None)),
        ("data", "token_budget", (0, -5, 2.5, 10**12)),
        ("data", "max_tiles", (0, 10**8)),
        ("data", "max_skipped", (-1, 0.5)),
        ("data", "workers", (-1, 10**6)),
        ("data", "thumbnail", (1, "no")),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(data, section, field, values):
    """Each would end as a run that learned nothing, or the other way round, or as a traceback later."""
    for value in values:
        config = toy.config(data, data / "w")
        setattr(getattr(config, section), field, value)
        with pytest.raises(InputError, match=rf"^{section}\.{field}\b"):
            check(config)


@pytest.mark.parametrize(
    ("settings", "field", "values"),
    [
        (GspoConfig, "clip_low", (-0.1, 2.0, NAN)),
        (GspoConfig, "kl", (-1.0, NAN)),
        (GspoConfig, "grader_seconds", (0, NAN, INFINITY)),
        (GspoConfig, "lowest_accuracy", (-1.0, 0.9)),  # the second: above the highest
        (GspoConfig, "zero_variance", ("skip",)),
        (MpoConfig, "beta", (0.0, -1.0, NAN)),
        (MpoConfig, "pairs", (0, 1.5)),
        (MpoConfig, "quality", (-0.2, NAN)),
        (RouterConfig, "share", (0, 1, NAN)),
        (RouterConfig, "epsilon", (0, -1.0, NAN)),
        (ConsistencyConfig, "rates", ("pictures",)),
    ],
)
def test_settings_that_no_stage_can_have_are_refused(data, settings, field, values):
    names = {GspoConfig: "gspo", MpoConfig: "mpo", RouterConfig: "router", ConsistencyConfig: "consistency"}
    for value in values:
        config = toy.with_run(toy.config(data, data / "w"), init_from=str(data))
        config.objective, config.stage = names[settings], settings(**{field: value})
        with pytest.raises(InputError, match=rf"^stage\.{field}\b"):
            check(config)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rules": "fdsp"}, "run.rules is 'fdsp' .did you mean 'fsdp'.*; the presets are fsdp"),
        ({"mesh": "fsdp=3"}, "does not use the 8 devices"),
        ({"mesh": "fsdp:8"}, "write it as 'fsdp=16,tensor=4'"),
        ({"mesh": "pipeline=8"}, r"unknown axes \['pipeline'\]"),
        ({"mesh": "tensr=8"}, r"unknown axes \['tensr'\] .did you mean 'tensor'"),
        ({"mesh": "fsdp=0"}, "sizes count devices from 1"),
        ({"rows": 12, "mesh": "fsdp=8"}, "12 in 1 micro-batches can't be spread over 8 devices"),
    ],
)
def test_a_mesh_or_preset_that_does_not_exist_is_refused(data, change, sentence):
    config, _ = setup.prepare(toy.with_run(toy.config(data, data / "w"), **change))
    with pytest.raises(InputError, match=sentence):
        build(config)


def test_mesh_text():
    assert parse_mesh("fsdp=16, tensor=4") == {"fsdp": 16, "tensor": 4}


def test_the_image_token_is_the_tokenizers(data):
    config, processor = setup.prepare(toy.config(data, data / "w"))
    assert config.model.image_token_id == processor.tokenizer.token_id("<IMG_CONTEXT>") != toy.MODEL.image_token_id


def test_a_tokenizer_larger_than_the_model_is_refused(data):
    config = toy.config(data, data / "w")
    config.model = dataclasses.replace(toy.MODEL, text=dataclasses.replace(toy.MODEL.text, vocab=64))
    with pytest.raises(InputError, match="but the model only 64 rows"):
        setup.prepare(config)


def test_settings_are_told_as_they_were_resolved(data, tmp_path):
    config = toy.gspo_config(data, tmp_path / "w", mesh="fsdp=-1,tensor=2", rules="fsdp_tp", micro_batches=2)
    told = "\n".join(setup.describe(config, make_mesh(parse_mesh(config.run.mesh))))
    assert "learning_rate=0.003" in told and "clip_low=0.2" in told
    assert "step: 8 rows of 173 tokens in 2 micro-batches, on fsdp=4, tensor=2; at most 1,384 tokens a step" in told
    assert "8,304 in all" in told and "rollouts: 16 responses a batch, used up in 2 steps of 8" in told
    assert f"reference: {data / 'start'}" in told
    config.objective, config.stage = "mpo", MpoConfig(pairs=6, reference="elsewhere")
    told = "\n".join(setup.describe(config, make_mesh({}, jax.devices()[:1])))
    assert "on one device" in told and "pairs: 6 a step, 36 in all" in told and "reference: elsewhere" in told


def test_a_reference_is_rounded_where_products_round(start, tmp_path):
    """What stays exact in the policy does in its reference, which else were not the same model at the first step."""
    config, _ = setup.prepare(toy.mpo_config(start, tmp_path / "w", mesh="fsdp=8", dtype="bfloat16"))
    params = read_reference(config.run.init_from, build(config))
    rounded = {path for path, leaf in params.items() if leaf.dtype == "bfloat16"}
    assert {"lm.embed.weight", "vit.patch.weight", "projector.fc1.weight", "lm.layers.mlp.up.weight"} < rounded
    assert not rounded & {"lm.norm.scale", "vit.layers.attn.qkv.bias", "vit.positions", "lm.layers.attn.q_norm.scale"}
    assert not in_products("lm.layers.mlp.router.weight")


def test_a_workdir_takes_its_own_config_and_no_other(data, tmp_path):
    config, processor = setup.prepare(toy.config(data, tmp_path / "w"))
    setup.claim_workdir(config, processor)
    # What changes neither the parameters nor the order of the data may differ.
    setup.claim_workdir(toy.with_run(config, save_every=99, mesh="data=8", micro_batches=4, remat="full"), processor)
    # Nor may it forbid anything where an older version wrote it down.
    record = tmp_path / "w" / setup.RUN_CONFIG
    values = json.loads(record.read_text())
    record.write_text(json.dumps(values | {"run": values["run"] | {"logprob_chunk": 3, "micro_batches": 2}}))
    setup.claim_workdir(config, processor)
    other = toy.with_run(config, seed=6)
    other.optim = dataclasses.replace(config.optim, learning_rate=1.0)
    with pytest.raises(InputError, match=r"optim.learning_rate: 1.0 here, 0.003 there; run.seed: 6 here, 5 there"):
        setup.claim_workdir(other, processor)
    adapted = toy.with_run(config)  # it has a base, which that run knows nothing of
    adapted.lora, adapted.model = toy.LORA, with_adapter(config.model, toy.LORA)
    with pytest.raises(InputError, match=r"holds a run of another config \(lora: .{,140} here, None there; "):
        setup.claim_workdir(adapted, processor)


def test_a_workdir_in_use_is_refused_before_anything_is_built(data, tmp_path):
    config = toy.config(data, tmp_path / "w")
    with setup.hold_workdir(config.run.workdir):
        with pytest.raises(InputError, match=r"w is being written by process \d+ on .* since"):
            train(config)
        assert [path.name for path in (tmp_path / "w").iterdir()] == [MARK]


def test_a_plain_run_needs_no_field_that_earlier_versions_lacked(data):
    """So that it goes on with a newer version: what a run can do without is not among what it is known by."""
    found = identity(toy.config(data, data / "w"))
    assert set(found) == {"model", "objective", "data", "optim", "run", "stage"}
    assert set(found["model"]) == {"downsample_ratio", "flash", "image_token_id", "text", "vision"}
    assert set(found["run"]) == {"balance", "dtype", "init_from", "rows", "seed", "steps"}
    assert set(found["data"]) == {
        *("max_open", "max_tiles", "meta", "min_tiles", "over_long", "pack", "template", "thumbnail"),
        *("tile_budget", "token_budget", "tokenizer", "weighting"),
    }
    other = toy.config(data, data / "w")
    other.data.system = "Judge."
    assert differences(identity(other), found) == ["data.system: 'Judge.' here, None there"]
    other.run.products = "int8"
    assert identity(other)["run"]["products"] == "int8"
    other.lora.rank = 2
    assert "quantise" not in identity(other)["lora"]
    other.lora.quantise = "int8"
    assert identity(other)["lora"]["quantise"] == "int8"


def test_identity_holds_every_field_that_matters(data):
    config = toy.config(data, data / "w")
    assert differences(identity(config), identity(toy.with_run(config, workdir="elsewhere"))) == []
    assert differences(identity(config), identity(toy.with_run(config, steps=7))) == ["run.steps: 6 here, 7 there"]
