"""Judges are asked again where they can't be understood, and what they said is kept."""

import json

import pytest

from internvl_jax.errors import InputError
from internvl_jax.evaluation import KeptJudge
from internvl_jax.evaluation.suites import judges

OPTIONS = {"A": "red", "B": "blue", "C": "green"}


def saying(*replies):
    """A judge that says these in turn, and how warm it was each time."""
    heard, left = [], list(replies)

    def judge(prompt, temperature=0.0):
        heard.append(temperature)
        return left.pop(0)

    return judge, heard


@pytest.mark.parametrize(
    ("ask", "replies", "found"),
    [
        (lambda judge: judges.judged_option(judge, "q", OPTIONS, "a"), ["hm", "", "B"], "B"),
        (lambda judge: judges.judged_option(judge, "q", OPTIONS, "a"), ["Z"], "Z"),
        (lambda judge: judges.judged_option(judge, "q", {}, "a"), ["hm"] * 3, None),
        (lambda judge: judges.judged_yes_no(judge, "q", "a"), ["hm", "yes and no", "no"], "No"),
        (lambda judge: judges.judged_yes_no(judge, "q", "a"), ["hm"] * 5, "Unknown"),
        (lambda judge: judges.judged_final(judge, "q", "a"), ["", " 7\n"], "7"),
        (lambda judge: judges.judged_letters(judge, "q", "a"), ["none", "AC"], "AC"),
        (lambda judge: judges.judged_grade(judge, "q", "t", "a"), ["good", "2", "0.5"], 0.5),
        (lambda judge: judges.judged_grade(judge, "q", "t", "a"), ["nan"] * 5, 0),
        (lambda judge: judges.judged_same(judge, "q", "t", "a"), ["yes", "0.7", " 1\n"], True),
        (lambda judge: judges.judged_likeness(judge, "q", "t", "a"), ["much"], None),
    ],
)
def test_a_judge_is_asked_again_and_warmer(ask, replies, found):
    judge, heard = saying(*replies)
    assert ask(judge) == found
    assert heard == [0.5 * number for number in range(len(replies))]


def test_a_judge_that_names_no_option_leaves_it_to_the_lot():
    """In three tries; the same each time, and any of them."""
    drawn = [judges.judged_option(saying(*["hm"] * 3)[0], f"q{n}", OPTIONS, "a") for n in (*range(40), *range(40))]
    assert drawn[:40] == drawn[40:] and set(drawn) == set(OPTIONS)


class Named:
    """In an endpoint's place."""

    def __init__(self, model, replies):
        self.model, self.left = model, replies

    def __call__(self, prompt, temperature=0.0):
        if not self.left:
            raise InputError("the judge does not answer")
        return self.left.pop(0)


def test_what_a_judge_said_is_not_asked_again(tmp_path):
    path = tmp_path / "new" / "a.verdicts.jsonl"
    judge = KeptJudge(Named("m", ["one", "two", "warm"]), path)
    assert [judge("a"), judge("b"), judge("a", 0.5)] == ["one", "two", "warm"]
    with pytest.raises(InputError, match="does not answer"):
        judge("c")
    path.write_bytes(path.read_bytes() + b'{"key": "cut off')
    again = KeptJudge(Named("m", ["three"]), path)
    assert [again("b"), again("c"), again("a", 0.5)] == ["two", "three", "warm"]
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 4
    assert KeptJudge(Named("other", ["its own"]), path)("a") == "its own"
    path.write_text("no verdict\n")
    with pytest.raises(InputError, match=r"line 1 is no verdict; remove the file"):
        KeptJudge(Named("m", []), path)("a")
