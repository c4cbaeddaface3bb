"""Streaming text: whole characters, no part of a stop string, the same text as at once; thinking and answer apart."""

import dataclasses
import sys
import types

import pytest

from internvl_jax import data
from internvl_jax.data import split_thinking
from internvl_jax.inference import SamplingParams, Seen, TextReader, Token
from internvl_jax.inference.text import TextStream, ThinkingStream


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


@pytest.mark.parametrize(
    ("text", "stops", "least", "wanted"),
    [
        ("aENDbENDc", ("END",), 3, "a"),  # the fourth token ends it
        ("aENDbENDc", ("END",), 4, "aENDb"),
        ("aENDbENDc", ("END",), 7, "aENDb"),
        ("aENDbENDc", ("END",), 8, "aENDbENDc"),
        ("abcd", ("abcd", "bc"), 3, ""),  # of what was held, "bc" had ended before anything could
        ("abce", ("abcd", "bc"), 3, "abce"),
    ],
)
def test_stop_strings_wait_for_the_least_tokens(processor, text, stops, least, wanted):
    stream = TextStream(processor, stops, least)
    tokens = [token for part in text for token in processor.tokenizer.encode(part)]
    assert len(tokens) == len(text)
    assert "".join([*map(stream.feed, tokens), stream.finish()]) == wanted


def test_how_a_prompt_begins_an_answer_is_no_part_of_it(processor):
    """No stop string stands in it, nor begins there."""
    stream = TextStream(processor, ("\n\n", ">x"))
    stream.begin(processor.tokenizer.encode("<think>\n\n</think>"))
    got = [stream.feed(token) for token in processor.tokenizer.encode("x")]
    assert "".join([*got, stream.finish()]) == "x" and not stream.stopped


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
def test_thinking_and_answer_are_told_apart_as_they_come(text, width):
    stream = ThinkingStream()
    got = [stream.feed(text[at : at + width]) for at in range(0, len(text), width)]
    thinking, answer = zip(*got, stream.finish(), strict=True)
    assert ("".join(thinking), "".join(answer)) == split_thinking(text)


def test_an_answer_without_thinking_is_not_held():
    stream = ThinkingStream()
    assert [stream.feed(piece)[1] for piece in (" ", "<t", "o", "k")] == ["", "", " <to", "k"]


def test_thinking_is_told_as_it_comes():
    stream = ThinkingStream()
    pieces = ("<think>", "\n so", " it", " ", "is</", "think>", "\n\n", "42")
    assert [stream.feed(piece)[0] for piece in pieces] == ["", "so", " it", "", " is", "", "", ""]
    assert not stream.thinking


@pytest.fixture
def harmony(processor, gpt_oss_files) -> data.Processor:
    template = data.get_template("internvl3_5_gpt_oss")
    return dataclasses.replace(processor, tokenizer=data.Tokenizer.load(gpt_oss_files), template=template)


class Script:
    """An engine whose model says these tokens."""

    def __init__(self, tokens):
        self.tokens, self.left = tokens, []

    config = types.SimpleNamespace(image_token_id=-1)

    def add(self, request):
        self.left, self.request = list(enumerate(self.tokens, 1)), request
        return 7

    def drop(self, id, answer=None):
        self.left = []

    def step(self, most=None):
        number, token = self.left.pop(0)
        end = "stop" if token in self.stops else None if self.left else "length"
        seen = Seen(self.request.tokens_T, self.request.tokens_T, self.request.tokens_T)
        return [Token(7, 0, token, 0.0, number, end, seen)]


@pytest.mark.parametrize(
    ("end", "tokens"), [("<|return|>", 1), ("<|end|><|start|>assistant<|channel|>final<|message|>again", 1), ("", 0)]
)
def test_users_see_the_final_channel(harmony, monkeypatch, end, tokens):
    """Earlier answers end in <|end|> in training, so a model may end one so: it closes thinking, but answers too."""
    markup = "<|channel|>analysis<|message|>two<|end|><|start|>assistant<|channel|>final<|message|>4 猫"
    script = Script(harmony.tokenizer.encode_special(markup + end))
    chat = sys.modules["internvl_jax.inference.chat"]  # the package's `chat` is the function
    script.stops = harmony.stop_ids
    monkeypatch.setattr(chat, "get_reader", lambda model, processor: TextReader(script))
    asked = [{"role": "user", "content": "2+2?"}]
    assert chat.chat(None, harmony, asked) == "4 猫"
    assert chat.chat(None, harmony, asked, thinking=True) == "<think>\ntwo\n</think>\n\n4 猫"
    assert chat.chat(None, harmony, asked, stop_strings=("猫",)) == "4 "
    assert chat.chat(None, harmony, asked, stop="猫", max_tokens=99) == "4 "
    answer = chat.complete(None, harmony, asked, SamplingParams())
    assert split_thinking(answer.text) == ("two", "4 猫")
    assert answer.num_tokens == len(harmony.tokenizer.encode_special(markup)) + tokens
