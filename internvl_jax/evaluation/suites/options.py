"""Which option a free answer means, without a judge: by its letter, else by its text.

Source of the rules: VLMEvalKit at e8e78f05, vlmeval/utils/matching_util.py, with VERBOSE unset.
"""

import re
from collections.abc import Mapping

NONE_OF_THEM = "Z"  # the model refused, or said so itself

_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 4  # a lone letter counts only among these: an "A" further ahead may be an article
_STATED = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)


def infer_option(prediction: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer means, `NONE_OF_THEM` for a refusal, None where it can't be told.

    Args:
      options: texts by letter, in the order of the question.
    """
    return infer_by_letter(prediction, options) or infer_by_text(prediction, options)


def infer_by_letter(prediction: str, options: Mapping[str, str]) -> str | None:
    """See `infer_option`. A letter is a word of its own; only one of them may be among the words."""
    if _FAILED in prediction:
        return None
    if any(refusal in prediction for refusal in _REFUSALS):
        return NONE_OF_THEM
    words = prediction.translate(_SEPARATORS).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS:
        return named[0]
    if not named and NONE_OF_THEM in words:
        return NONE_OF_THEM
    stated = _STATED.search(prediction)
    letter = stated.group(1).upper() if stated else ""
    return letter if letter in options else None


def infer_by_text(prediction: str, options: Mapping[str, str]) -> str | None:
    """The option whose text stands in the answer, whatever the case, if it is the only one; answers over twice as long
    as all options together are taken for reasoning. An empty option stands in every answer.
    """
    lowered = prediction.lower()
    if len(lowered) > 2 * sum(map(len, options.values())):
        return None
    found = [letter for letter, text in options.items() if text.lower() in lowered]
    return found[0] if len(found) == 1 else None
