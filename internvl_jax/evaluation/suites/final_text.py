r"""What of a response is the answer: what is boxed, what is announced. `split_prediction` takes thinking away before.

Source of the rules: VLMEvalKit at e8e78f05 (`extract_boxed_content`, `mpo_post_processing`, MMMU_Pro),
all of them off in its InternVL3.5 configs.
"""

import re

_BOX = r"\boxed{"
_ANNOUNCED = re.compile(r"(?:Final answer:|Answer:)\s*(.*)", re.IGNORECASE)
_REPEATED_PART, _REPEATED_TIMES = 100, 20  # characters; times


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
    """Whether a response ends in a loop: its last 100 characters stand 20 times in its second half."""
    text = text.strip()
    if len(text) < _REPEATED_PART * _REPEATED_TIMES:
        return False
    return text[len(text) // 2 :].count(text[-_REPEATED_PART:]) >= _REPEATED_TIMES
