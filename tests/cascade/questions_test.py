"""Questions: answers worked out again in another way, and chains that arrive at them."""

import collections
import itertools
import re

import numpy as np
import pytest

from cascade import questions
from cascade.evaluation import Asked, Said

# Every kind's answer, from a tally of the digits.
EXPECTED = {
    "sum": lambda tally: str(sum(digit * count for digit, count in tally.items())),
    "largest": lambda tally: str(next(digit for digit in range(9, -1, -1) if tally[digit])),
    "count even": lambda tally: str(tally[0] + tally[2] + tally[4] + tally[6] + tally[8]),
    "count above 5": lambda tally: str(tally[6] + tally[7] + tally[8] + tally[9]),
    "sort": lambda tally: "".join(str(digit) * tally[digit] for digit in range(10)),
    "difference": lambda tally: str(
        next(d for d in range(9, -1, -1) if tally[d]) - next(d for d in range(10) if tally[d])
    ),
}


def many_digits():
    rng = np.random.default_rng(0)
    return [(0,), (7, 7, 7), (9, 0, 9, 0), *(tuple(rng.integers(10, size=n).tolist()) for n in range(1, 8))]


def test_every_kind_is_checked():
    assert set(EXPECTED) == set(questions.KINDS)
    assert len({kind.text for kind in questions.KINDS.values()}) == len(questions.KINDS)


@pytest.mark.parametrize("kind", questions.KINDS)
def test_answers(kind):
    for digits in many_digits():
        assert questions.ask(kind, digits).answer == EXPECTED[kind](collections.Counter(digits)), digits


@pytest.mark.parametrize("kind", questions.KINDS)
def test_chains_arrive_at_the_answer(kind):
    """A chain reads all digits in order, and every step of it is true."""
    for digits in many_digits():
        asked = questions.ask(kind, digits)
        assert questions.read_digits(asked.chain) == "".join(map(str, digits))
        if kind == "sum":
            steps = re.split(r"[+=]", asked.chain.split(":")[1])
            assert list(map(int, steps[::2])) == list(itertools.accumulate(digits))
            assert steps[-1] == asked.answer
        elif kind in ("count even", "count above 5"):
            picked = asked.chain.split(":")[1]
            assert picked == "".join(
                re.findall("[02468]" if kind == "count even" else "[6789]", asked.chain.split(":")[0])
            )
            assert len(picked) == int(asked.answer)
        elif kind == "difference":
            high, low, difference = map(int, re.split("[-=]", asked.chain.split(":")[1]))
            assert (high, low, high - low) == (max(digits), min(digits), difference)


@pytest.mark.parametrize("kind", questions.KINDS)
def test_responses_are_right_and_well_formed(kind):
    asked = questions.ask(kind, (3, 8, 1))
    said = Said(Asked(kind, None, asked.text, asked.answer), asked.response, 0, 24)
    assert said.right and said.formed
    assert not said._replace(asked=said.asked._replace(answer="x")).right


@pytest.mark.parametrize(
    ("response", "answer", "accuracy", "form"),
    [
        (r"<think>503:035</think>\boxed{035}", "035", 1, 1),
        (r"<think>503:35</think>\boxed{35}", "035", 0, 1),  # of equal value, and not what was asked for
        (r"<think>78:15</think>\boxed{7+8}", "15", 0, 1),
        (r"<think>78:\boxed{15}</think>", "15", 1, 0),
        (r"<think>1</think>\boxed{1}\boxed{2}", "2", 1, 1),
        ("15", "15", 0, 0),
    ],
)
def test_grading_is_to_the_letter(response, answer, accuracy, form):
    score = questions.grade(response, answer)
    assert (score.accuracy, score.format, score.error) == (accuracy, form, None)
    assert score.reward == pytest.approx(0.9 * accuracy + 0.1 * form)
