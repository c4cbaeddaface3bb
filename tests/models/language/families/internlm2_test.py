"""InternLM2.5 is what the recorded critic of that family says: tokens, outputs, scores, files both ways."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoint_convert import convert, load_model
from checkpoint_convert.hf_config import read_config
from checkpoint_convert.rows import to_released
from checkpoint_convert.tables import TABLES
from internvl_jax.data import Tokenizer
from internvl_jax.errors import InputError
from internvl_jax.inference.load import load
from internvl_jax.sharding import flatten
from tests.models.language.families import critics

FILES = ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
WQKV = "language_model.model.layers.{}.attention.wqkv.weight"


@pytest.fixture(scope="module")
def critic(request):
    return critics.Critic.read(request.config.rootpath / "tests/golden/visualprm_internlm2_github")


@pytest.fixture
def copied(critic, tmp_path):
    """A copy of the tokenizer's files; `change(name, function of the JSON)` changes one of them."""
    for name in FILES:
        (tmp_path / name).write_bytes((critic.directory / name).read_bytes())

    def change(name, edit):
        values = json.loads((tmp_path / name).read_text())
        edit(values)
        (tmp_path / name).write_text(json.dumps(values))
        return Tokenizer.load(tmp_path)

    return change


def test_tokens(critic):
    critics.check_tokens(critic)


def test_scores(critic):
    critics.check_scores(critic)


def test_a_text_beyond_the_context_of_the_training(critic):
    critics.check_long(critic)


def test_there_and_back(critic, tmp_path):
    convert(critic.directory, tmp_path / "ours")
    model, processor = load(tmp_path / "ours", "float32")
    assert model.config == critic.model.config
    assert processor.tokenizer.digest == critic.processor.tokenizer.digest
    assert processor.to_dict() == critic.processor.to_dict()
    convert(tmp_path / "ours", tmp_path / "github", "github")
    assert critics.bits(tmp_path / "github") == critics.bits(critic.directory)
    critics.check_config(critic, tmp_path / "github")
    for name in FILES:
        assert (tmp_path / "github" / name).read_bytes() == (critic.directory / name).read_bytes()
    with pytest.raises(InputError, match="no format for InternLM2ForCausalLM; use --to=github"):
        convert(tmp_path / "ours", tmp_path / "hf", "hf")


def test_a_key_head_s_queries_its_key_and_its_value_lie_together(critic):
    """[kv heads, queries of one + 2, head width]; not all queries, then all keys."""
    params = {path: np.asarray(leaf) for path, leaf in flatten(critic.model).items()}
    query, key, value = (params[f"lm.layers.attn.{part}.weight"] for part in "qkv")
    assert query.shape == (3, 4, 16, 64) and key.shape == value.shape == (3, 2, 16, 64)
    turns = load_file(critic.directory / "model.safetensors")[WQKV.format(1)].reshape(2, 4, 16, 64)
    assert np.array_equal(query[1, 3], turns[1, 1]) and np.array_equal(query[1, 2], turns[1, 0])
    assert np.array_equal(key[1, 1], turns[1, 2]) and np.array_equal(value[1, 0], turns[0, 3])
    again = dict(to_released(TABLES["github", "internlm2"].rows, params))
    tensors = load_file(critic.directory / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(WQKV.format(2)), rf"missing: {WQKV.format(2)}\)"),
        (lambda t: t.update({WQKV.format(0): t[WQKV.format(0)][:96]}), r"\[96, 64\] instead of \[128, 64\]"),
        (lambda t: t[WQKV.format(0)].fill(np.nan), f"not finite: {WQKV.format(0)}"),
    ],
)
def test_a_tensor_of_several_parameters_is_named_once(critic, tmp_path, change, message):
    tensors = load_file(critic.directory / "model.safetensors")
    change(tensors)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((critic.directory / "config.json").read_bytes())
    with pytest.raises(InputError, match=message) as error:
        load_model(tmp_path, "float32", image_token_id=482)
    assert str(error.value).count("wqkv") == 1


@pytest.mark.parametrize(("key", "value"), [("bias", True), ("hidden_act", "gelu")])
def test_another_one_is_refused(critic, tmp_path, key, value):
    values = json.loads((critic.directory / "config.json").read_text())
    values["llm_config"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"{key} is {value!r}"):
        read_config(tmp_path).model(482)


def test_the_tokenizer_leaves_as_it_came(critic, tmp_path):
    tokenizer = critic.processor.tokenizer
    tokenizer.save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        name: (critic.directory / name).read_bytes() for name in FILES
    }
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.digest == tokenizer.digest == Tokenizer.load(tmp_path).digest
    assert copy.encode("12 + 7 猫") == tokenizer.encode("12 + 7 猫") and copy.begin == (1,)


def test_control_strings_in_text_stay_text(critic):
    """Also those that are pieces of the sentencepiece model, which would never cut them."""
    tokenizer = critic.processor.tokenizer
    for text in ("<|im_end|>", "a<|im_start|>b", "<<|im_end|><|im_end|>", "<s>", "<IMG_CONTEXT></img>", " </s>\n"):
        ids = tokenizer.encode(text)
        assert not {tokenizer.token_id(token) for token in tokenizer.added_tokens} & set(ids)
        assert tokenizer.decode(ids) == text
    text = "the <ref>cup</ref><box>[[1, 2]]</box>"
    assert tokenizer.token_id("<box>") in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text


def test_streams_give_whole_characters(critic):
    tokenizer = critic.processor.tokenizer
    text, stream = "né 猫 🎈 12", critic.processor.decode_stream()
    parts = [stream.feed(token) for token in tokenizer.encode(text)]
    assert "".join(parts) + stream.finish() == text and "猫" in parts
    assert tokenizer.decode([1, 9, 2, *tokenizer.encode("Hello"), 10_000]) == "Hello"


def test_what_the_files_say(copied):
    assert copied("tokenizer_config.json", lambda values: values.update(add_bos_token=False)).begin == ()
    assert (
        copied("tokenizer_config.json", lambda values: values.pop("added_tokens_decoder")).token_id("<|im_end|>") == 9
    )
    renamed = copied("added_tokens.json", lambda values: values.update({"<think>": 489}))
    assert renamed.vocab_size == 490 and renamed.encode("<think>a") == [489, *renamed.encode("a")]


def test_broken_files(copied, tmp_path):
    (tmp_path / "added_tokens.json").write_text("{")
    with pytest.raises(InputError, match=r"added_tokens\.json is not valid JSON"):
        Tokenizer.load(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"tokenizer\.model is not a sentencepiece model"):
        Tokenizer.load(tmp_path)


def test_what_stands_in_front_is_not_learned(critic):
    template, tokenizer = critic.processor.template, critic.processor.tokenizer
    records = [{"from": "human", "value": "6 * 4?"}, {"from": "gpt", "value": "+"}]
    tokens_T, supervised_T = template.encode_training(records, (), tokenizer)
    assert tokens_T[0] == 1 and tokens_T[1] == tokenizer.im_start
    assert tokenizer.decode(tokens_T[supervised_T], skip_special=False) == "+<|im_end|>"
    tokens_T, _ = template.encode_training([{"from": "pretrain", "value": "6 * 4"}], (), tokenizer)
    assert tokens_T.tolist() == [1, *tokenizer.encode("6 * 4")]
