"""Streaming text: whole characters, no part of a stop string, the same text as at once; thinking and answer apart."""

import dataclasses
import sys
import types

import numpy as np
import pytest

from internvl_jax import data
from internvl_jax.data import split_thinking
from internvl_jax.inference import Request, SamplingParams
from internvl_jax.inference.text import AnswerStream, TextStream


def pieces(processor, text, stops=()):
    """Fed byte by byte: the tokens of single bytes stand for any way to cut a text."""
    tokenizer = processor.tokenizer
    tokens = [token for part in text for token in (tokenizer.encode(part))]
    stream = TextStream(processor, stops)
    return [stream.feed(token) for token in tokens] + [stream.finish()], stream


@pytest.mark.parametrize("text", ["plain", "naïve 猫 🐈‍⬛ ok", ""])
def test_joined_pieces_are_the_text(processor, text):
    got, _ = pieces(processor, text)
    assert "".join(got) == text and not any("�" in piece for piece in got)


@pytest.mark.parametrize(
    ("text", "stops", "wanted"),
    [
        ("one END two", ("END",), "one "),
        ("one EN two", ("END",), "one EN two"),
        ("EENEND", ("END",), "EEN"),
        ("abab猫x", ("ab猫",), "ab"),
        ("first\n\nsecond", ("###", "\n\n"), "first"),
        ("ends with EN", ("END",), "ends with EN"),
    ],
)
def test_stop_strings_over_token_borders(processor, text, stops, wanted):
    got, stream = pieces(processor, text, stops)
    assert "".join(got) == wanted
    assert stream.stopped == (wanted != text)


def test_text_is_not_held_longer_than_needed(processor):
    got, _ = pieces(processor, "abcE", ("END",))
    assert got == ["a", "b", "c", "", "E"]


@pytest.mark.parametrize("width", [1, 2, 3, 50])
@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "<think>\na\n</think>\n\nb <think>",
        "<think>cut",
        "\n<think></think>b\n",
        "<thin",
        "",
        " \n",
        "<think>a</think>",
    ],
)
def test_the_answer_alone_is_what_follows_the_thinking(text, width):
    stream = AnswerStream()
    got = [stream.feed(text[at : at + width]) for at in range(0, len(text), width)]
    assert "".join([*got, stream.finish()]) == split_thinking(text)[1]


def test_an_answer_without_thinking_is_not_held():
    stream = AnswerStream()
    assert [stream.feed(piece) for piece in (" ", "<t", "o", "k")] == ["", "", " <to", "k"]


@pytest.fixture
def harmony(processor, gpt_oss_files) -> data.Processor:
    template = data.get_template("internvl3_5_gpt_oss")
    return dataclasses.replace(processor, tokenizer=data.Tokenizer.load(gpt_oss_files), template=template)


class Script:
    """A generator whose model says these tokens."""

    def __init__(self, tokens):
        self.tokens = tokens

    config = types.SimpleNamespace(image_token_id=-1)

    def look(self, requests):
        return types.SimpleNamespace(tokens=[request.tokens_T for request in requests])

    def stream(self, requests, rows=1, seen=None):
        for token in self.tokens:
            yield np.full(len(requests), token)


@pytest.mark.parametrize(
    ("end", "tokens"), [("<|return|>", 1), ("<|end|><|start|>assistant<|channel|>final<|message|>again", 1), ("", 0)]
)
def test_users_see_the_final_channel(harmony, monkeypatch, end, tokens):
    """Earlier answers end in <|end|> in training, so a model may end one so: it closes thinking, but answers too."""
    markup = "<|channel|>analysis<|message|>two<|end|><|start|>assistant<|channel|>final<|message|>4 猫"
    script = Script(harmony.tokenizer.encode_special(markup + end))
    chat = sys.modules["internvl_jax.inference.chat"]  # the package's `chat` is the function
    monkeypatch.setattr(chat, "get_generator", lambda model, processor: script)
    asked = [{"role": "user", "content": "2+2?"}]
    assert chat.chat(None, harmony, asked) == "4 猫"
    assert chat.chat(None, harmony, asked, thinking=True) == "<think>\ntwo\n</think>\n\n4 猫"
    assert chat.chat(None, harmony, asked, stop_strings=("猫",)) == "4 "
    assert chat.chat(None, harmony, asked, stop="猫", max_tokens=99) == "4 "
    request = Request(np.zeros(3, np.int32), np.zeros((0, 28, 28, 3)), SamplingParams())
    (answer,) = chat._complete(script, harmony, [request], 1)
    assert split_thinking(answer.text) == ("two", "4 猫")
    assert answer.num_tokens == len(harmony.tokenizer.encode_special(markup)) + tokens
