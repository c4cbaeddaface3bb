"""What no run can have is refused before anything is built; a workdir belongs to one config."""

import dataclasses
import json

import jax
import pytest

from internvl_jax.errors import InputError
from internvl_jax.sharding import make_mesh
from internvl_jax.training import MpoConfig
from internvl_jax.training.config import differences, parse_mesh
from internvl_jax.training.run import setup
from internvl_jax.training.run.initial import read_reference
from internvl_jax.training.run.program import in_products
from internvl_jax.training.run.setup import check, identity
from tests.programs import build
from tests.training import toy


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "run.steps is 0"),
        ({"workdir": ""}, "run.workdir is empty"),
        ({"micro_batches": 3}, "run.micro_batches 3 does not divide run.rows 8"),
        ({"dtype": "float16"}, "run.dtype is 'float16'"),
        ({"balance": 0.001}, "run.balance is 0.001 but the model has no experts"),
        ({"balance": -1.0}, "run.balance is -1.0; it must be 0 or more"),
    ],
)
def test_impossible_values_are_refused(data, change, sentence):
    with pytest.raises(InputError, match=sentence):
        check(toy.with_run(toy.config(data, data / "w"), **change))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rules": "fdsp"}, "run.rules is 'fdsp'; the presets are fsdp"),
        ({"mesh": "fsdp=3"}, "does not use the 8 devices"),
        ({"mesh": "fsdp:8"}, "write it as 'fsdp=16,tensor=4'"),
        ({"mesh": "pipeline=8"}, r"unknown axes \['pipeline'\]"),
        ({"remat": "some"}, "remat is 'some'"),
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


def test_identity_holds_every_field_that_matters(data):
    config = toy.config(data, data / "w")
    assert differences(identity(config), identity(toy.with_run(config, workdir="elsewhere"))) == []
    assert differences(identity(config), identity(toy.with_run(config, steps=7))) == ["run.steps: 6 here, 7 there"]
