"""Questions about the digits of a board, their answers, and answers with a chain of thought before them.

A chain reads the digits and works on them, step by step; the answer stands in a box after it:
`<think>357:3+5=8+7=15</think>\\boxed{15}`, `<think>3528:28</think>\\boxed{2}`.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from internvl_jax.grading import Score

_BOXED = re.compile(r"\\boxed\{(.*?)\}", re.DOTALL)
_FORM = re.compile(r"<think>.*</think>.*\\boxed\{.*\}.*", re.DOTALL)


class BoardQuestion(NamedTuple):
    """What is asked, its answer, and how it is found."""

    kind: str
    text: str
    answer: str
    chain: str

    @property
    def response(self) -> str:
        return f"<think>{self.chain}</think>\\boxed{{{self.answer}}}"


class QuestionKind(NamedTuple):
    """A kind of question: its text, and from the digits to chain and answer, both strings."""

    text: str
    solve: Callable[[Sequence[int]], tuple[str, str]]


def _sum(digits: Sequence[int]) -> tuple[str, str]:
    total, chain = digits[0], f"{joined(digits)}:{digits[0]}"
    for digit in digits[1:]:
        total += digit
        chain += f"+{digit}={total}"
    return chain, str(total)


def _picked(rule: Callable[[int], bool]) -> Callable[[Sequence[int]], tuple[str, str]]:
    def solve(digits: Sequence[int]) -> tuple[str, str]:
        picked = [digit for digit in digits if rule(digit)]
        return f"{joined(digits)}:{joined(picked)}", str(len(picked))

    return solve


def _difference(digits: Sequence[int]) -> tuple[str, str]:
    high, low = max(digits), min(digits)
    return f"{joined(digits)}:{high}-{low}={high - low}", str(high - low)


def joined(digits: Sequence[int]) -> str:
    """Digits as a text, without anything between them."""
    return "".join(map(str, digits))


KINDS = {
    "sum": QuestionKind("What is the sum of all digits?", _sum),
    "largest": QuestionKind("What is the largest digit?", lambda digits: (joined(digits), str(max(digits)))),
    "count even": QuestionKind("How many digits are even?", _picked(lambda digit: digit % 2 == 0)),
    "count above 5": QuestionKind("How many digits are greater than 5?", _picked(lambda digit: digit > 5)),
    "sort": QuestionKind("Sort the digits.", lambda digits: (joined(digits), joined(sorted(digits)))),
    "difference": QuestionKind("What is the largest digit minus the smallest?", _difference),
}


READ = "read"  # a kind that needs no reasoning: for training alone
_READ = QuestionKind("Read the digits.", lambda digits: (joined(digits), joined(digits)))


def ask(kind: str, digits: Sequence[int]) -> BoardQuestion:
    """The question of this kind, one of `KINDS` or `READ`, about a board's digits, in reading order."""
    text, solve = _READ if kind == READ else KINDS[kind]
    chain, answer = solve(digits)
    return BoardQuestion(kind, text, answer, chain)


def grade(response: str, answer: str) -> Score:
    """0.9 if the last box holds the answer to the letter, 0.1 if the response has its form.

    Not `grading.mmpr`, to which numbers of equal value are equal: sorted, 5, 0 and 3 are 035 and not 35.
    """
    found = _BOXED.findall(response)
    right, formed = float(bool(found) and found[-1] == answer), float(_FORM.fullmatch(response) is not None)
    return Score(0.9 * right + 0.1 * formed, right, formed)


def read_digits(chain: str) -> str:
    """The digits that a chain claims to have read, whether or not the rest of it is sound."""
    return chain.partition(":")[0]
