r"""Final answers in text: where they stand, and when two are the same without doing mathematics.

A final answer is looked for after the thinking, in this order: the last `\boxed{...}`; what follows the last
"answer:" or "answer is" (MMPR's prompts ask for "Final answer: .."); else all that was said.
"""

import re
from typing import NamedTuple

from internvl_jax.grading import numbers

THINK, THINK_END = "<think>", "</think>"
_BOX = r"\boxed{"
# Stars and spaces in any order: "**Final answer:** 12", "The answer is: 12". MMPR is partly Chinese.
_ANNOUNCED = re.compile(r"(?:\banswer|答案)[\s*]*(?:is\b|是|[:：])[\s*:：]*(\S.*)", re.IGNORECASE)
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"(?<!\\)\\[,;: ]|\\quad\b|~|\s+")
_QUOTES = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ('"', '"'), ("'", "'"), ("`", "`"))
# "B", "(B)", "B.", "B. 12", "(B) 12", "option B": a letter that goes on as a word or a product is none.
_CHOICE = re.compile(r"(?:(?:option|choice)\s+)?(?:\(([a-z])\)(?:\s.*)?|([a-z])(?:[.:)](?:\s.*)?)?)", re.DOTALL)


class StatedAnswer(NamedTuple):
    """A final answer: `text` is bare and lower case; then what it is read as."""

    text: str
    choice: str | None
    number: numbers.Number | None

    @property
    def is_bare_choice(self) -> bool:
        """A letter without the text that it stands for."""
        return self.choice is not None and self.text in (self.choice, f"({self.choice})")


def after_thinking(response: str) -> str | None:
    """What was said after the thinking; None while that has not ended. A prompt may have opened the thinking."""
    _, ended, said = response.rpartition(THINK_END)
    return None if not ended and response.lstrip().startswith(THINK) else said


def boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, braces nested; None if there is none or it isn't closed."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    start += len(_BOX)
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):  # an escaped brace is a character
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start : start + brace.start()].strip()
    return None


def final_answer(response: str) -> str | None:
    """The final answer of a response, as it was written; None if it has none."""
    said = after_thinking(response)
    if said is None:
        return None
    if _BOX in said:
        return boxed(said)
    announced = [match.group(1) for match in _ANNOUNCED.finditer(said)]
    return (announced[-1] if announced else said).strip() or None


def bare(text: str) -> str:
    r"""Without what says nothing: spaces, dollar signs, quotes and stars around it, `\text{}`, a full stop."""
    text = _SPACES.sub(" ", _WRAPPED.sub(r" \1 ", text)).strip()
    before = None
    while text != before:  # what is wrapped may be wrapped again: **$12$.**
        before = text
        for left, right in _QUOTES:
            if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
                inner = text[len(left) : -len(right)]
                text = text if left in inner else inner.strip()
        text = text.removesuffix(".").rstrip()
    return text


def read(text: str) -> StatedAnswer:
    """What a final answer says."""
    text = bare(text).casefold()
    choice = _CHOICE.fullmatch(text)
    return StatedAnswer(text, choice[1] or choice[2] if choice else None, numbers.read(text))


def verdict(given: StatedAnswer, truth: StatedAnswer) -> bool | None:
    """Are they the same? None if only mathematics can tell: neither the same text, nor choices, nor both numbers."""
    if given.text == truth.text:
        return True
    if given.is_bare_choice or truth.is_bare_choice:
        return given.choice == truth.choice
    if given.number and truth.number:
        return numbers.same(given.number, truth.number)
    return None
