"""Qwen2.5 is what the recorded critic of that family says: tokens, outputs, scores, files both ways."""

import json

import pytest

from checkpoint_convert import convert, load_released
from checkpoint_convert.hf_config import read_config
from internvl_jax.errors import InputError
from internvl_jax.inference.load import load
from tests.models.language.families import critics


@pytest.fixture(scope="module")
def critic(request):
    return critics.Critic.read(request.config.rootpath / "tests/golden/visualprm_qwen2_github")


def test_tokens(critic):
    critics.check_tokens(critic)


def test_outputs(critic):
    critics.check_outputs(critic)


def test_generation(critic):
    critics.check_generation(critic)


def test_scores(critic):
    critics.check_scores(critic)


def test_a_text_beyond_the_context_of_the_training(critic):
    critics.check_long(critic)


def test_there_and_back(critic, tmp_path):
    """A model directory of this project, the HF format, and back: the same bits, tokens and settings."""
    convert(critic.directory, tmp_path / "ours")
    model, processor = load(tmp_path / "ours", "float32")
    assert model.config == critic.model.config
    assert processor.tokenizer.digest == critic.processor.tokenizer.digest
    assert processor.to_dict() == critic.processor.to_dict()
    assert processor.system == critic.prm["system_message"]
    convert(tmp_path / "ours", tmp_path / "github", "github")
    convert(tmp_path / "github", tmp_path / "hf", "hf")
    convert(tmp_path / "hf", tmp_path / "again", "github")
    assert critics.bits(tmp_path / "github") == critics.bits(tmp_path / "again") == critics.bits(critic.directory)
    # No token fills up: the tokenizer's own is named.
    critics.check_config(critic, tmp_path / "github", {"llm_config.pad_token_id"})
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "github" / name).read_bytes() == (critic.directory / name).read_bytes()
    again, _ = load_released(tmp_path / "hf", "float32")
    assert again.config == critic.model.config
    names = critics.bits(tmp_path / "hf")
    assert "language_model.model.layers.2.self_attn.k_proj.bias" in names
    assert not any("o_proj.bias" in name or "q_norm" in name for name in names)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("use_sliding_window", True, "use_sliding_window is True"),
        ("layer_types", ["sliding_attention"] * 3, "layer_types"),
        ("head_dim", 32, "head_dim is 32, but only 16"),
        ("hidden_size", 66, "llm_config.hidden_size 66 is not a multiple of llm_config.num_attention_heads 4"),
        ("rope_scaling", {"type": "mrope", "factor": 2.0}, "rope_scaling.type is 'mrope'"),
        ("rope_scaling", {"type": "dynamic"}, "lacks llm_config.rope_scaling.factor"),
    ],
)
def test_another_one_is_refused(critic, tmp_path, key, value, message):
    values = json.loads((critic.directory / "config.json").read_text())
    values["llm_config"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        read_config(tmp_path).model(425)


def test_plain_positions(critic, tmp_path):
    values = json.loads((critic.directory / "config.json").read_text())
    values["llm_config"]["rope_scaling"] = None
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path).model(425).text.ntk is None
