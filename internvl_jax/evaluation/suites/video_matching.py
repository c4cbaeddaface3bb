"""Answers to questions about videos: the letter that is named, MVBench's first word, VSI-Bench's options and numbers.

Source of the rules: VLMEvalKit at e8e78f05 (videomme.py, multiple_choice.py, mvbench.py, utils/mlvu.py,
spatial_bench/), VSI-Bench's mean relative accuracy as there.
"""

import ast
import re
from collections.abc import Sequence

import numpy as np

# A missing comma in the official list glues two prefixes together, twice.
VIDEO_PREFIXES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option isThe correct option is", "Best answer:Best option:", "Answer:", "Option:"),
)
_PREFIXES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option is", "The correct option is", "Best answer:", "Best option:"),
)
_FEW_WORDS = 10
_THINK_END, _THINK = re.compile(r"</\s*think\s*>", re.IGNORECASE), re.compile(r"<\s*think\s*>", re.IGNORECASE)
_INVISIBLE = re.compile("[\u200b\u200c\u200d\ufeff]")
_NUMBER = r"[-+]?(?:\d*\.\d+|\d+)(?:[eE][-+]?\d+)?"
_ANY_NUMBER = re.compile(_NUMBER)
_TAGGED_NUMBER = re.compile(
    rf"<\s*answer\b[^>]*>\s*({_NUMBER})(?:[^\d<][^<]*)?<\s*/\s*answer\s*>", re.IGNORECASE | re.DOTALL
)
_ANSWER_END = re.compile(r"<\s*/\s*answer\s*>", re.IGNORECASE)
_TAGGED_LETTER = re.compile(rf"<\s*answer\b[^>]*>\s*([A-Ja-j]).*?{_ANSWER_END.pattern}", re.IGNORECASE | re.DOTALL)
_BEFORE_END = [
    re.compile(rf"(?<![A-Za-z])[(\[{{（【]?\s*([A-F])\s*[)\]}}）】]?\s*</\s*{tag}\s*>", re.IGNORECASE)
    for tag in ("answer", "think")
]
_OPTION_LINE = re.compile(r"^(?:[*_>\-\s]*)(?:option|选项)\s+[A-J]\s*[:：]", re.IGNORECASE)
_LONE_LETTER = re.compile(r"[*_`>（）\[\]【】()]*\s*([A-Fa-f])\s*[*_`（）\[\]【】()]*")
_LABEL = re.compile(r"([A-F])\s*[.．:：)\]】、-]\s+", re.IGNORECASE)
_INLINE = re.compile(r"(?<![A-Za-z])[*_`（\[{(]*+\s*+([A-F])\s*[*_`）\]})]*(?=$|[\s.,:;!?)\]】》」』，。；、：）])")
_CONCLUSION = re.compile(
    r"(?:final\s*answer|the\s*answer\s*is|answer(?:\s*is)?|correct\s*answer|"
    r"答案|最终答案|结论|所以|因此|我选(?:择)?|选择|选)"
    r"\s*+[:：>＝=]?+\s*+[(\[{（【]?+\s*+([A-F])\s*[)\]}）】]?(?:\b|[.)、。])",
    re.IGNORECASE,
)
_ALONE = re.compile(r"(?<![A-Za-z])[(\[{（【]?\s*+([A-F])\s*[)\]}）】]?(?![A-Za-z])")
_TAIL, _TAIL_LINES = 800, 6  # characters and lines of an answer's end
_TO_TWENTY = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""
_WORDS = _TO_TWENTY.split()
_WORD = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)
_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of relative accuracy


def first_letter(text: str, letters: str = "ABCD", prefixes: Sequence[str] = VIDEO_PREFIXES) -> str:
    """The first of these letters anywhere in the answer without its announcement, "" where there is none; so 'Because'
    means B.
    """
    text = text.strip()
    for prefix in prefixes:
        text = text.replace(prefix, "")
    return next((letter for letter in text if letter in letters), "")


def first_of_five(text: str) -> str:
    """MME-RealWorld: as `first_letter` for A to E; a short answer without one may be a letter in small, or a part of
    '(A)', the first such option counting.
    """
    found = first_letter(text, "ABCDE", _PREFIXES)
    rest = text.strip()
    for prefix in _PREFIXES:
        rest = rest.replace(prefix, "")
    if found or len(rest.split()) > _FEW_WORDS:
        return found
    return next((letter for letter in "ABCDE" if rest.lower() in f"({letter})".lower()), "")


def starts_with_option(prediction: str, answer: str) -> bool:
    """MVBench: the first word of the prediction is within that of the answer, '(A) text', or the other way round; so
    nothing at all is right.
    """
    said, true = prediction.lower().strip().split(" ")[0], answer.lower().strip().split(" ")[0]
    return said.replace(".", "") in true or true in said


def is_letter_of(prediction: str, answer: str) -> bool:
    """MLVU: the prediction is the letter of the answer, '(A) text', or what it has before its first ')' is."""
    before, end, _ = prediction.partition(")")
    return (before[-1:] if end else prediction) == answer[1 : answer.index(")")]


def vsi_option(text: str) -> str | None:
    """VSI-Bench: the letter, A to F, that an answer comes to; what is nearer to its end wins."""
    text = _INVISIBLE.sub("", text.strip())
    ends = [match.end() for match in _ANSWER_END.finditer(text)]  # behind them nothing is in tags
    if ends and (tagged := _TAGGED_LETTER.search(text, 0, ends[-1])):
        return tagged.group(1).upper()
    tail = text[-_TAIL:]
    for pattern in _BEFORE_END:
        if found := pattern.search(tail):
            return found.group(1).upper()
    for part in (_after_thinking(text), tail):
        if letter := _of_last_lines(part):
            return letter
    if stated := _CONCLUSION.search(text):
        return stated.group(1).upper()
    lines = [line for line in re.split("\r\n|\r|\n", text) if not _OPTION_LINE.search(line)]
    alone = set(_ALONE.findall("\n".join(lines)))
    return alone.pop() if len(alone) == 1 else None


def vsi_number(text: str) -> float | None:
    """VSI-Bench: the number within <answer>, or the last one after the thinking; words up to twenty count too."""
    text = _INVISIBLE.sub("", _first_of_list(text).strip())
    text = _WORD.sub(lambda match: str(_WORDS.index(match.group().lower())), text)
    if tagged := _TAGGED_NUMBER.search(text):
        return float(tagged.group(1))
    numbers = _ANY_NUMBER.findall(_after_thinking(text)) or _ANY_NUMBER.findall(text)
    return float(numbers[-1]) if numbers else None


def relative_accuracy(prediction: float, target: float) -> float:
    """Mean over ten thresholds, 0.5 to 0.95, of whether the relative error (the absolute one of a target of 0) is
    within what they leave.
    """
    error = abs(prediction - target) if target == 0 else abs((prediction - target) / target)
    return float(np.mean(error <= 1 - _THRESHOLDS))


def _of_last_lines(text: str) -> str | None:
    lines = re.split("\r\n|\r|\n", text)
    for line in reversed([line.strip() for line in lines[-_TAIL_LINES:] if line.strip()]):
        if _OPTION_LINE.search(line):
            continue
        found = _LONE_LETTER.fullmatch(line) or _LABEL.match(line)
        if found:
            return found.group(1).upper()
        inline = set(_INLINE.findall(line))
        if len(inline) == 1:
            return inline.pop()
    return None


def _after_thinking(text: str) -> str:
    """What follows the last </think>, or the last <think> where thinking does not end."""
    ends = list(_THINK_END.finditer(text)) or list(_THINK.finditer(text))
    return text[ends[-1].end() :].strip() if ends else text


def _first_of_list(text: str) -> str:
    if text.strip().startswith("[") and text.strip().endswith("]"):
        try:
            parts = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return ""  # the official code finds no number then
        return str(parts[0]) if isinstance(parts, list) and parts else text
    return text
