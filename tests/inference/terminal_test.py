"""A conversation in the terminal, with a model that says what it is told."""

import io

import PIL.Image
import pytest

from internvl_jax.inference import terminal


@pytest.fixture
def converse(monkeypatch, processor):
    """Runs a conversation; returns what the model was asked each time. An answer None is an interrupt."""

    def run(lines, answers):
        asked, rest = [], iter(answers)

        def stream(model, processor, messages, **sampling):
            asked.append(messages)
            for piece in next(rest):
                if piece is None:
                    raise KeyboardInterrupt
                yield piece

        monkeypatch.setattr(terminal, "stream_chat", stream)
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        terminal.converse(None, processor, {}, [])
        return asked

    return run


def test_an_interrupted_answer_stays_in_the_conversation(converse, capsys):
    asked = converse(["one", "two", "three"], [["a", "b", None, "c"], [None], ["d"]])
    user = [terminal.message(text, []) for text in ("one", "two", "three")]
    said = [{"role": "assistant", "content": text} for text in ("ab", "")]
    assert asked[-1] == [user[0], said[0], user[1], said[1], user[2]]
    assert capsys.readouterr().out == "ab\n\nd\n"


def test_pictures_may_have_quoted_paths_and_are_looked_at_once_named(converse, capsys, tmp_path):
    path = tmp_path / "a b.png"
    PIL.Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "c.png").write_text("no picture")
    lines = [
        f"/image '{path}'",
        f"/image {path}",
        "/image",
        f"/image {tmp_path}/c.png",
        "/image 'x",
        "look",
        "/clear",
        "again",
    ]
    asked = converse(lines, [["a"], ["b"]])
    assert asked == [[terminal.message("look", [str(path)] * 2)], [terminal.message("again", [])]]
    assert capsys.readouterr().err.count("error: ") == 3


def test_every_command_is_in_the_help(converse, capsys):
    assert converse(["/help", "/nothing", "/quit", "never"], []) == []
    error = capsys.readouterr().err
    assert all(command in error for command in ("/image", "/clear", "/help", "/quit", "no command /nothing"))


def test_an_empty_answer_can_be_followed_by_a_question(processor):
    messages = [terminal.message("one", []), {"role": "assistant", "content": ""}, terminal.message("two", [])]
    assert len(processor(messages).tokens_T) > len(processor(messages[:1]).tokens_T)
