r"""What of a response is the answer: what is boxed, what is announced. `split_prediction` takes thinking away before.

Source of the rules: VLMEvalKit at e8e78f05 (`extract_boxed_content`, `mpo_post_processing`, MMMU_Pro),
all of them off in its InternVL3.5 configs.
"""

import re

_BOX = r"\boxed{"
_ANNOUNCED = re.compile(r"(?:Final answer:|Answer:)\s*(.*)", re.IGNORECASE)
_MARKS = re.compile("</?(?:quad|ref|box)>")
_LOOP, _LOOP_TIMES = 800, 8  # characters of a loop in all, and times that its part stands in it, at least
_SEEN = 1 << 15  # characters from the end in which a loop is looked for
_WINDOW = 32  # characters; where these stand once more, a part of a loop may begin


def without_marks(text: str) -> str:
    """Without the marks of names and boxes, which the release's tokenizers hold for control tokens and leave out."""
    return _MARKS.sub("", text)


def boxed_content(text: str) -> str:
    r"""What the last \boxed{} holds; the whole text where there is none, or it does not close."""
    start = text.rfind(_BOX)
    depth = 0
    for at in range(start + len(_BOX) - 1, len(text) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + len(_BOX) : at]
    return text


def announced_answer(text: str) -> str:
    """The rest of the line behind the first 'Final answer:' or 'Answer:'; the whole text where nothing is announced."""
    found = _ANNOUNCED.search(text)
    return found.group(1).strip() if found else text


def answer_line(text: str) -> str:
    """MMMU_Pro's answers after a chain of thought: the one capital letter behind 'Answer:' in the last line that starts
    so, or all that is behind it.
    """
    for line in reversed(text.strip().split("\n")):
        if line.strip().startswith("Answer:"):
            rest = line.strip()[len("Answer:") :]
            letters = sorted({letter for letter in rest if "A" <= letter <= "Z"})
            return letters[0] if len(letters) == 1 else rest
    return text


def repeats(text: str) -> bool:
    """Whether a response ends in a loop: in the same part, of any length, eight times or more and over 800 characters
    or more. The last of them may be cut off, so a loop is taken from its end.
    """
    text = text.strip()[-_SEEN:]
    longest, at = len(text) // _LOOP_TIMES, len(text)
    while (at := text.rfind(text[-_WINDOW:], 0, at - 1)) >= 0:
        part = len(text) - _WINDOW - at
        if part > longest:
            return False
        if text.endswith(text[-part:] * max(_LOOP_TIMES, -(-_LOOP // part))):
            return True
        at += _WINDOW
    return False
