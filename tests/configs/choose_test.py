"""A run's config from the names and fields that a user writes."""

import dataclasses
import json

import pytest

from configs.choose import choose, experiments, explain
from configs.models.sizes import SIZES, get, nearest_to
from internvl_jax.errors import InputError
from internvl_jax.training import STAGES, DataConfig, Group, OptimConfig, RunConfig


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("run.steps", "7", 7),
        ("run.balance", "1e-3", 1e-3),
        ("run.dtype", "bfloat16", "bfloat16"),
        ("run.workdir", "100", "100"),
        ("data.pack", "false", False),
        ("data.over_long", "drop", "drop"),
        ("optim.groups", '[{"pattern": "^vit", "frozen": true}]', (Group("^vit", frozen=True),)),
        ("stage.mask_overlong", "true", True),
        ("objective", "mpo", "mpo"),
    ],
)
def test_every_kind_of_field_can_be_set(path, text, value):
    found = choose("gspo:tiny", {path: text})
    for name in path.split("."):
        found = vars(found)[name]
    assert found == value


@pytest.mark.parametrize(
    ("experiment", "fields", "sentence"),
    [
        ("stf:8b", {}, "no experiment 'stf' .did you mean 'sft'"),
        ("configs/experiments/stf.py:8b", {}, "did you mean 'sft'"),
        ("sft:30b", {}, "no model size is called '30b' .did you mean"),
        ("sft", {}, "write sft:8b"),
        ("sft:tiny", {"run.stepz": "3"}, "--config.run.stepz: run has no field 'stepz' .did you mean 'steps'"),
        ("sft:tiny", {"rum.steps": "3"}, "the config has no field 'rum' .did you mean 'run'"),
        ("sft:tiny", {"run.steps": "abc"}, "--config.run.steps is 'abc'; it must be a whole number from 1"),
        ("sft:tiny", {"run.steps": "0"}, "--config.run.steps is '0'"),
        ("sft:tiny", {"run.steps": "2.5"}, "--config.run.steps is '2.5'"),
        ("sft:tiny", {"run.balance": "nan"}, "--config.run.balance is 'nan'"),
        ("sft:tiny", {"data.pack": "yes"}, "--config.data.pack is 'yes'; it must be true or false"),
        ("sft:tiny", {"run.steps.more": "0"}, "run.steps can't be set; it has no fields"),
        ("sft:tiny", {"data.weighting": "tokens"}, "it must be one of 'token', 'sample', 'square'"),
        ("sft:tiny", {"optim.groups": "[{}]"}, "pattern"),
        ("sft:tiny", {"optim.groups": "vit"}, "not valid JSON"),
        ("sft:tiny", {"optim.groups": '[{"pattern": "a", "frozn": true}]'}, "field 'frozn' .did you mean 'frozen'"),
        ("sft:tiny", {"optim.groups": "3"}, "must be a list of the fields of Group"),
        ("sft:tiny", {"stage.reference": "x"}, "objective 'ntp' has no settings"),
        ("sft:tiny", {"model.text.width": "3"}, "a model is chosen by its size"),
    ],
)
def test_what_is_not_there_is_one_sentence_with_the_nearest_name(experiment, fields, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        choose(experiment, fields)
    assert "\n" not in str(error.value)


def test_a_file_and_the_name_of_an_experiment_mean_the_same(tmp_path, monkeypatch):
    named = choose("sft:tiny", {})
    assert choose("configs/experiments/sft.py:tiny", {}) == named
    (tmp_path / "mine.py").write_text("from configs.experiments import sft\nget_config = sft.get_config\n")
    assert choose(f"{tmp_path}/mine.py:tiny", {}) == named
    monkeypatch.chdir(tmp_path)
    assert choose("configs/experiments/sft.py:tiny", {}) == named
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match="has no function get_config"):
        choose("empty.py:tiny", {})
    (tmp_path / "broken.py").write_text("x = 1\ndef get_config(size:\n")
    with pytest.raises(InputError, match=r"broken\.py:2 is no Python \('\(' was never closed\); mend it"):
        choose("broken.py:tiny", {})
    (tmp_path / "lacking.py").write_text("import no_such_module\n")
    with pytest.raises(InputError, match=r"lacking\.py can't be imported \(No module named 'no_such_module'\)"):
        choose("lacking.py:tiny", {})


@pytest.mark.parametrize("name", SIZES)
def test_a_size_is_nearest_to_itself(name):
    assert nearest_to(get(name)) == name


@pytest.mark.parametrize("experiment", ["sft", "consistency"])
def test_without_a_size_the_model_is_that_of_init_from(tmp_path, experiment):
    model = dataclasses.replace(get("8b"), text=dataclasses.replace(get("8b").text, vocab=151700, layers=35))
    values = {"format": 1, "model": model.to_dict(), "processor": {"template": "internlm2-chat"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    found, recipe = choose(experiment, {"run.init_from": str(tmp_path)}), choose(f"{experiment}:8b", {})
    assert found.model.text == model.text and found.optim == recipe.optim
    assert found.model.vision == recipe.model.vision and found.model.flash == recipe.model.flash
    assert found.data.template == "internlm2-chat" and found.run.init_from == str(tmp_path)


def test_help_explains_every_field():
    text = explain()
    assert len(experiments()) > 6 and all(name in text for name in experiments())
    sections = {"run": RunConfig, "data": DataConfig, "optim": OptimConfig}
    pairs = [*sections.items(), *(("stage", stage.settings) for stage in STAGES.values() if stage.settings)]
    for section, cls in pairs:
        for field in dataclasses.fields(cls):
            assert f"--config.{section}.{field.name}: " in text
    assert "the number of optimizer steps." in text


def test_a_released_checkpoint_to_start_from_is_told_how_to_be_converted(golden):
    with pytest.raises(InputError, match=r"launch\.convert --src="):
        choose("sft", {"run.init_from": str(golden / "hf_qwen3")})
