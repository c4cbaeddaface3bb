"""Candidates and choices of many questions, which resume after a kill."""

import json

import pytest

from internvl_jax.errors import InputError
from internvl_jax.evaluation import BestOfFiles, grade_chosen
from internvl_jax.evaluation.tasks import Question
from internvl_jax.inference import Answer, Selection

INDICES = [str(number) for number in range(11)]


def files(folder, **settings):
    return BestOfFiles(folder / "a.b", INDICES, lambda index: [{"content": index}], settings, 4)


def ask(talks):
    texts = [message["content"] for (message,) in talks]
    return [[Answer(f"{text} {number}", number, ()) for number in range(3)] for text in texts]


def choose(messages, responses):
    """The second; every other question has steps."""
    steps = ((0.5,), (0.25, 1.0), ()) if int(messages[0]["content"]) % 2 else ()
    return Selection(1, (0.5, 0.625, 0.0), steps)


def after(calls, function):
    """The function, until Ctrl-C comes in place of a call."""
    left = iter(range(calls))

    def broken(*given):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*given)

    return broken


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_run_that_was_killed_goes_on(tmp_path, calls):
    whole, begun = files(tmp_path / "whole"), files(tmp_path / "begun")
    whole.answer(ask, {"n": 3})
    whole.choose(choose, {"by": "me"})
    with pytest.raises(KeyboardInterrupt):
        begun.answer(after(calls, ask), {"n": 3})
    assert not begun.answered({"n": 3})
    begun.answer(ask, {"n": 3})
    assert begun.answered({"n": 3})
    with pytest.raises(InputError, match=r"was begun otherwise .*n"):
        begun.answered({"n": 4})
    with pytest.raises(KeyboardInterrupt):
        begun.choose(after(5 * calls, choose), {"by": "me"})
    begun.choose(choose, {"by": "me"})
    contents = lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}
    assert contents(tmp_path / "whole") == contents(tmp_path / "begun")
    assert sorted(contents(tmp_path / "whole")) == [
        "a.b.candidates.jsonl",
        "a.b.candidates.settings.json",
        "a.b.choices.jsonl",
        "a.b.choices.settings.json",
    ]
    found = begun.read()
    assert list(found) == INDICES and found["7"].answer == Answer("7 1", 1, ())
    assert found["7"].choice == choose([{"content": "7"}], ()) and found["6"].choice.steps == ()
    with pytest.raises(InputError, match=r"was begun otherwise .*by"):
        begun.choose(choose, {"by": "you"})
    path = tmp_path / "begun" / "a.b.choices.jsonl"
    path.write_text(path.read_text().replace('"best":1', '"best":3'))
    with pytest.raises(InputError, match=r"is a choice among other candidates; remove .*choices\.jsonl"):
        begun.read()


def test_verdicts_on_all_candidates(tmp_path):
    found = files(tmp_path)
    found.answer(ask, {})
    found.choose(choose, {})
    questions = [Question(None, "what?", f"{index} {1 if index == '3' else 0}") for index in INDICES]
    rated = grade_chosen(questions, list(found.read().values()), "exact", 0.0)
    report = rated.report()
    assert (report["accuracy"], report["greedy"], report["any"]) == pytest.approx((1 / 11, 10 / 11, 1.0))
    assert report["tokens"] == 11 * 3
    rated.write(tmp_path / "rows.jsonl")
    line = json.loads((tmp_path / "rows.jsonl").read_text().split("\n")[3])
    assert (line["prediction"], line["right"], line["best"]) == ("3 1", True, 1)
    assert line["candidates"] == [
        {"text": "3 0", "tokens": 0, "right": False, "value": 0.5, "steps": [0.5]},
        {"text": "3 1", "tokens": 1, "right": True, "value": 0.625, "steps": [0.25, 1.0]},
        {"text": "3 2", "tokens": 2, "right": False, "value": 0.0, "steps": []},
    ]
