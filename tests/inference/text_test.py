"""Streaming text: whole characters, no part of a stop string, the same text as at once."""

import pytest

from internvl_jax.inference.text import TextStream


def pieces(processor, text, stops=()):
    """Fed byte by byte: the tokens of single bytes stand for any way to cut a text."""
    tokenizer = processor.tokenizer
    tokens = [token for part in text for token in (tokenizer.encode(part))]
    stream = TextStream(tokenizer, stops)
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
