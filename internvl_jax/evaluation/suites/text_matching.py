"""How near a short answer is to the true ones: yes or no, VQA score, ANLS, relaxed numbers, containment.

Source of the rules: VLMEvalKit at e8e78f05 (yorn.py, vqa_eval.py, misc.py, ocrbench.py, crpe.py), and the public VQA
evaluation that these reproduce.
"""

import math
import re
from collections.abc import Sequence

UNKNOWN = "Unknown"
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_LONE_DOT = re.compile(r"(?<!\d)\.(?!\d)")
_MOST_DOTS = 32  # `re.UNICODE` stands where the official code has the count of replacements
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_ARTICLES = ("a", "an", "the")
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# Words that lack an apostrophe get it back. The official table takes it from one of them instead.
_CONTRACTIONS = {"somebody'd": "somebodyd"} | {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"
}
_THRESHOLD = 0.5  # of ANLS: what is further away is wrong
_CLOSE = 0.05  # relative change that charts allow
_BLANKS_ASIDE = "Handwritten Mathematical Expression Recognition"


def without_punctuation(text: str) -> str:
    """A sign is deleted if it touches a blank anywhere in the text, or there is a digit,comma,digit; else it becomes a
    blank. Dots that touch no digit are deleted.
    """
    has_number = _DIGIT_COMMA.search(text) is not None
    signs: dict[str, str | int] = {
        sign: "" if has_number or f"{sign} " in text or f" {sign}" in text else " " for sign in _PUNCTUATION
    }
    return _LONE_DOT.sub("", text.translate(str.maketrans(signs)), count=_MOST_DOTS)


def normalized(text: str) -> str:
    """As the VQA evaluation compares answers: no punctuation, articles or capitals, digits for number words."""
    text = without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def yes_or_no(text: str) -> str:
    """'Yes' or 'No' if exactly one of them is among the words, else 'Unknown'."""
    words = without_punctuation(text.lower()).split()
    said = [word for word in ("yes", "no") if word in words]
    return said[0].capitalize() if len(said) == 1 else UNKNOWN


def vqa_matches(prediction: str, answers: Sequence[str]) -> list[float]:
    """For each annotator how many of the others agree with the prediction; three are enough for 1."""
    said, given = normalized(prediction), [normalized(answer) for answer in answers]
    return [min(1.0, (given.count(said) - (own == said)) / 3) for own in given]


def vqa_score(prediction: str, answers: Sequence[str]) -> float:
    matches = vqa_matches(prediction, answers)
    return sum(matches) / len(matches)


def distance(prediction: str, answer: str) -> float:
    """Edits between two texts, without regard to case and white space, by the length of the longer one as it stands."""
    longest = max(len(prediction.upper()), len(answer.upper()))
    one, other = (" ".join(text.strip().lower().split()) for text in (prediction, answer))
    return _edits(one, other) / longest if longest else 0.0


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one question: that of the nearest answer, 0 below 0.5."""
    similarity = 1 - min(distance(prediction, answer) for answer in answers)
    return similarity if similarity >= _THRESHOLD else 0.0


def relaxed(prediction: str, answer: str) -> bool:
    """Numbers within 5 % of the true one (percents are hundredths), texts that are equal but for case."""
    said, true = _number(prediction), _number(answer)
    if said is not None and true:
        return abs(said - true) / abs(true) <= _CLOSE
    return prediction.lower() == answer.lower()


def same_text(prediction: str, answer: str) -> bool:
    """Equal but for case and surrounding space."""
    return prediction.strip().lower() == answer.strip().lower()


def contains(prediction: str, answer: str, category: str = "") -> bool:
    """OCRBench: the answer is in the prediction, whatever the case. In formulas blanks don't count, and case does."""
    said, true = (text.strip().replace("\n", " ") for text in (prediction, answer))
    if category == _BLANKS_ASIDE:
        return true.replace(" ", "") in said.replace(" ", "")
    return true.lower() in said.lower()


def contains_undotted(prediction: str, answer: str) -> bool:
    """MTVQA: the answer stands in the prediction, case and dots aside."""
    said, true = (text.lower().strip().replace(".", "") for text in (prediction, answer))
    return true in said


def names_option(prediction: str, answer: str) -> bool:
    """CRPE: an answer as 'B. cat', a prediction that starts with the letter, or else contains the text."""
    if len(prediction) == 1 or prediction[:1] in ("A", "B", "C", "D"):
        return prediction[:1] == answer[:1]
    return bool(prediction) and answer[4:].lower() in prediction.lower()  # without its first letter, as released


def denies(prediction: str) -> bool:
    """POPE in InternVL's own repository: 'no' or 'not' is a word of the first sentence."""
    words = prediction.partition(".")[0].replace(",", "").split(" ")
    return any(word in words for word in ("No", "not", "no"))


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _edits(one: str, other: str) -> int:
    """Levenshtein distance."""
    if len(one) > len(other):
        one, other = other, one
    costs = list(range(len(one) + 1))
    for row, letter in enumerate(other, 1):
        above, costs[0] = costs[0], row
        for column, own in enumerate(one, 1):
            kept = above if own == letter else 1 + min(above, costs[column], costs[column - 1])
            above, costs[column] = costs[column], kept
    return costs[-1]


def mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return sum(values) / len(values) if values else math.nan
