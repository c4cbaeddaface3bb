"""Token ids of the released vocabulary, special strings in text, streams, and the small trained vocabulary.

golden/templates/qwen_subset holds the part of the real Qwen vocabulary that can act on the recorded strings, with its
real ids, so all of them encode as with the whole vocabulary.
"""

import json
import pickle
import shutil

import pytest

from internvl_jax.data.text import tokenizer as tokenizers
from internvl_jax.errors import InputError

TEXTS = [
    "what colour is the shape? red",
    "is there a blue circle? no",
    "多语言 naïve 🙂 text",
    "  spaces\n\nand lines ",
]


@pytest.fixture(scope="module")
def qwen(request):
    return tokenizers.Tokenizer.load(request.path.parents[2] / "golden/templates/qwen_subset")


@pytest.fixture(scope="module")
def trained():
    return tokenizers.train_bpe(TEXTS * 3, 331)


@pytest.fixture
def strings(golden):
    return json.loads((golden / "templates/strings.json").read_text(encoding="utf-8"))


def test_ids_equal_the_released_ones(qwen, strings):
    assert len(strings) >= 30
    for case in strings:
        assert qwen.encode_special(case["text"]) == case["ids"], case["text"]


def test_ids_are_read_from_the_files(qwen):
    assert (qwen.image_start, qwen.image_end, qwen.image_context) == (151669, 151670, 151671)
    assert (qwen.im_start, qwen.im_end, qwen.eos, qwen.pad) == (151644, 151645, 151645, 151643)
    assert qwen.vocab_size == 151678


def test_every_file_layout_gives_the_same_ids(qwen, golden, tmp_path, strings):
    """tokenizer.json; vocab + merges with the added tokens in tokenizer_config.json, or in added_tokens.json."""
    source = golden / "templates/qwen_subset"
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        shutil.copy(source / name, tmp_path)
    added = json.loads((source / "added_tokens.json").read_text())
    (tmp_path / "added_tokens.json").write_text(json.dumps(added | {"<|endoftext|>": 151643}))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    from_added = tokenizers.Tokenizer.load(tmp_path)
    saved = tmp_path / "saved"
    saved.mkdir()
    qwen.save(saved)
    from_json = tokenizers.Tokenizer.load(saved)
    for case in strings:
        assert from_added.encode_special(case["text"]) == from_json.encode_special(case["text"]) == case["ids"]
        assert from_added.encode(case["text"]) == from_json.encode(case["text"]) == qwen.encode(case["text"])
    assert from_json.digest == qwen.digest


CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<img>", "</img>", "<IMG_CONTEXT>"]


@pytest.mark.parametrize("string", CONTROL)
@pytest.mark.parametrize("around", ["{}", "a{}b", " {}\n", "{0}{0}", "<{}>"])
def test_control_strings_in_text_stay_text(qwen, trained, string, around):
    text = around.format(string)
    for tokenizer in (qwen, trained):
        control = {tokenizer.token_id(token) for token in CONTROL}
        ids = tokenizer.encode(text)
        assert not control & set(ids)
        assert tokenizer.decode(ids) == text
        assert control & set(tokenizer.encode_special(text))


def test_text_tokens_are_tokens_wherever_they_stand(qwen, trained):
    for tokenizer in (qwen, trained):
        text = "<think>x</think> <ref>car</ref><box>[[1, 2]]</box>"
        ids = tokenizer.encode(text)
        assert {tokenizer.token_id(t) for t in ("<think>", "</think>", "<ref>", "</ref>", "<box>", "</box>")} <= set(
            ids
        )
        assert tokenizer.decode(ids) == text, "an answer's boxes are not to be skipped"


def test_decoding_gives_the_text_back(qwen, trained):
    for tokenizer in (qwen, trained):
        for text in [*TEXTS, "", " ", "\r\n\t", "\x00\x7f", "日本語 🏽👩‍👩‍👧 ½ ² Ⅳ", "�"]:
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_are_skipped_unless_asked_for(trained):
    ids = trained.encode_special("<|im_start|>red<|im_end|>")
    assert trained.decode(ids) == "red"
    assert trained.decode(ids, skip_special=False) == "<|im_start|>red<|im_end|>"


def test_ids_outside_the_vocabulary_are_dropped(qwen):
    ids = qwen.encode("Hello")
    assert qwen.decode([151_900, *ids, 151_935]) == "Hello"


def test_streams_give_whole_characters_and_the_same_text(trained):
    text = "a🎈é你<think>b"
    ids = trained.encode(text)
    assert len(trained.encode("🎈")) > 1, "the test needs a character of several tokens"
    stream = trained.decode_stream()
    parts = [stream.feed(i) for i in ids]
    assert "".join(parts) + stream.finish() == text
    assert all("�" not in part for part in parts)
    assert "🎈" in parts, "the four bytes of one character come out at once"


def test_streams_of_broken_bytes_equal_decoding(trained):
    ids = trained.encode("a🎈b🎈c")
    for dropped in range(len(ids)):
        for kept in (ids[:dropped], ids[:dropped] + ids[dropped + 1 :]):
            stream = trained.decode_stream()
            assert "".join(map(stream.feed, kept)) + stream.finish() == trained.decode(kept)


def test_strings_that_touch_are_encoded_as_one(qwen):
    start = qwen.im_start
    assert qwen.encode_items([start, "user\n", "\n\nHi"]) == [start, *qwen.encode("user\n\n\nHi")]
    assert qwen.encode_items([start, "user\n", "\n\nHi"]) != [start, *qwen.encode("user\n"), *qwen.encode("\n\nHi")]


def test_worker_processes_get_the_same_tokenizer(trained):
    copy = pickle.loads(pickle.dumps(trained))
    assert copy.digest == trained.digest
    assert copy.encode("<|im_end|>") == trained.encode("<|im_end|>")
    assert (copy.eos, copy.pad) == (trained.eos, trained.pad)


def test_training_is_repeatable_and_the_digest_tells_vocabularies_apart(trained, tmp_path):
    assert tokenizers.train_bpe(TEXTS * 3, 331).digest == trained.digest
    other = tokenizers.train_bpe(TEXTS * 3, 313)
    assert other.digest != trained.digest
    assert other.vocab_size == 313
    other.save(tmp_path)
    assert tokenizers.Tokenizer.load(tmp_path).digest == other.digest


def test_a_trained_vocabulary_merges_and_knows_every_byte(trained):
    assert len(trained.encode("what colour is the shape?")) < 10
    assert trained.decode(trained.encode("".join(map(chr, range(1, 300))))) == "".join(map(chr, range(1, 300)))
    assert trained.eos == trained.im_end and trained.pad == trained.token_id("<|endoftext|>")


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(InputError, match="vocabulary of 100 tokens is too small"):
        tokenizers.train_bpe(TEXTS, 100)


def test_nothing_is_cut_even_if_the_file_says_so(trained, tmp_path):
    trained.save(tmp_path)
    fields = json.loads((tmp_path / "tokenizer.json").read_text())
    fields["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    assert tokenizers.Tokenizer.load(tmp_path).encode("0123456789") == trained.encode("0123456789")
    assert len(trained.encode("0123456789")) > 3


def test_missing_token_and_missing_or_broken_files(trained, tmp_path):
    with pytest.raises(InputError, match="no token '<audio>'"):
        trained.token_id("<audio>")
    with pytest.raises(InputError, match="has no tokenizer: neither"):
        tokenizers.Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(InputError, match="has no tokenizer"):
        tokenizers.Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(InputError, match=rf"{tmp_path}/tokenizer\.json is not valid JSON"):
        tokenizers.Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json lacks the field 'added_tokens'"):
        tokenizers.Tokenizer.load(tmp_path)
