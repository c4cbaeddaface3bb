"""Grades, intervals and tables, from a few made-up answers."""

import pathlib

import pytest

from cascade import evaluation
from cascade.evaluation import Asked, CascadeScore, Said

FIVE = Asked("sum", pathlib.Path("a.png"), "What is the sum of all digits?", "5")
NINE = Asked("largest", pathlib.Path("b.png"), "What is the largest digit?", "9")


@pytest.mark.parametrize(
    ("text", "right", "formed"),
    [
        (r"<think>2+3=5</think>\boxed{5}", True, True),
        (r"<think>2+3=5</think>\boxed{15}", False, True),
        (r"<think>\boxed{4}</think>\boxed{5}", True, True),
        (r"\boxed{5}", True, False),
        (r"<think>2+3=5</think>5", False, False),
        (r"<think>2+3=5\boxed{5", False, False),
        ("", False, False),
    ],
)
def test_grades(text, right, formed):
    said = Said(FIVE, text, 3, 24)
    assert (said.right, said.formed) == (right, formed)


def test_wilson():
    """Values worked out from the textbook form of the interval."""
    assert evaluation.wilson(70, 100) == pytest.approx((0.6041515, 0.7810511), abs=1e-6)
    assert evaluation.wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)


def test_scores_and_table():
    said = [Said(FIVE, r"<think></think>\boxed{5}", 5, 24), Said(FIVE, "5", 2, 24), Said(NINE, r"\boxed{9}", 4, 24)]
    found = evaluation.score(said)
    assert [(s.kind, s.n, s.accuracy, s.formed) for s in found] == [
        ("sum", 2, 0.5, 0.5),
        ("largest", 1, 1.0, 0.0),
        ("all", 3, pytest.approx(2 / 3), pytest.approx(1 / 3)),
    ]
    text = evaluation.table([CascadeScore("sum", 1234, 0.98765, 0.9, 0.995, 1.0)])
    assert text.splitlines()[-1].replace(" ", "") == "|sum|1234|98.77%|90.00%..99.50%|100.00%|"


def test_pass_at():
    wrong, right = Said(FIVE, "", 1, 24), Said(FIVE, r"\boxed{5}", 3, 24)
    assert evaluation.pass_at([wrong, right, wrong, wrong, right, right], samples=2) == pytest.approx(2 / 3)
    assert evaluation.pass_at([wrong, right, wrong, wrong, right, right], samples=3) == 1


def test_answers_are_kept(tmp_path):
    said = [Said(FIVE, "a “b”\n", 5, 24), Said(NINE, r"\boxed{9}", 4, 24)]
    evaluation.write_answers(said, tmp_path / "answers.jsonl")
    assert evaluation.read_answers(tmp_path / "answers.jsonl") == said


def test_reads():
    """Reading is judged apart from what follows from it."""
    assert evaluation.reads(Said(NINE, r"<think>1397</think>\boxed{7}", 9, 24), (1, 3, 9, 7))
    assert not evaluation.reads(Said(NINE, r"<think>1297</think>\boxed{9}", 9, 24), (1, 3, 9, 7))
    assert evaluation.reads(Said(FIVE, r"<think>230:2+3=7+0=7</think>\boxed{7}", 9, 24), (2, 3, 0))
    assert not evaluation.reads(Said(FIVE, "", 0, 24), (2, 3, 0))
