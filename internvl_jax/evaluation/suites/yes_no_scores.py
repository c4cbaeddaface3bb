"""Yes or no: POPE, HallusionBench, MME. Source of the rules: VLMEvalKit at e8e78f05, vlmeval/dataset/utils/yorn.py."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from internvl_jax.evaluation.suites.judges import judged_yes_no
from internvl_jax.evaluation.suites.suite import Judge, Predicted, Rated, Suite
from internvl_jax.evaluation.suites.text_matching import UNKNOWN, mean, yes_or_no

_PERCEPTION = (
    *("OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position", "posters", "scene"),
)
_REASONING = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")

Row = Mapping[str, Any]


def pope(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """F1 of 'Yes', accuracy, precision and recall in percent. A question counts in each of its categories, and as often
    in all together.
    """
    rows, judged = _rated(answers, judge)
    exploded = [
        (category, answer.cells["answer"], row)
        for answer, row in zip(answers, rows, strict=True)
        for category in answer.cells.get("category", "").split(",")
    ]
    table = [_f1("Overall", exploded)]
    for name in sorted({category for category, _, _ in exploded if category}):
        table.append(_f1(name, [each for each in exploded if each[0] == name]))
    return Rated(table, rows, table[0]["Overall"], judged)


def hallusion(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Percent of questions (aAcc), of figures (fAcc) and of questions over all their figures (qAcc) that are right."""
    rows, judged = _rated(answers, judge)
    pairs = list(zip(answers, rows, strict=True))
    table = [_hallusion_row("Overall", pairs)]
    for column in ("category", "l2-category"):
        for name in sorted({answer.cells[column] for answer in answers if answer.cells.get(column)}):
            table.append(_hallusion_row(name, [pair for pair in pairs if pair[0].cells[column] == name]))
    return Rated(table, rows, mean([table[0][name] for name in ("aAcc", "fAcc", "qAcc")]), judged)


def mme(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """A category's score is percent of right questions plus percent of pictures whose two questions are both right."""
    rows, judged = _rated(answers, judge)
    found = dict[str, dict[str, list[bool]]]()
    for answer, row in zip(answers, rows, strict=True):
        pictures = found.setdefault(answer.cells["category"], {})
        pictures.setdefault(answer.cells.get("image_path", answer.index), []).append(row["hit"])
    scores = {}
    for category, pictures in found.items():
        questions = [hit for hits in pictures.values() for hit in hits]
        both = [hits[0] and hits[1] for hits in pictures.values() if len(hits) > 1]
        scores[category] = 100 * mean(questions) + (100 * mean(both) if both else 0.0)
    sums = {
        name: sum(scores.get(category, 0.0) for category in categories)
        for name, categories in (("perception", _PERCEPTION), ("reasoning", _REASONING))
    }
    return Rated([sums | scores], rows, sum(sums.values()), judged)


def _rated(answers: Sequence[Predicted], judge: Judge | None) -> tuple[list[dict[str, Any]], int]:
    rows, judged = list[dict[str, Any]](), 0
    for answer in answers:
        said = yes_or_no(answer.text)
        if said == UNKNOWN and judge is not None:
            judged += 1
            said = judged_yes_no(judge, answer.cells["question"], answer.text)
        rows.append({"index": answer.index, "extracted": said, "hit": said == answer.cells["answer"]})
    return rows, judged


def _f1(name: str, questions: Sequence[tuple[str, str, Row]]) -> dict[str, Any]:
    yes = [(true == "Yes", row["extracted"] == "Yes") for _, true, row in questions]
    found = sum(true and said for true, said in yes)
    precision, recall = (found / max(1, sum(pair[side] for pair in yes)) for side in (1, 0))
    f1 = 2 * precision * recall / (precision + recall) if found else 0.0
    accuracy = mean([row["hit"] for _, _, row in questions])
    return {
        "split": name,
        "Overall": 100 * f1,
        "acc": 100 * accuracy,
        "precision": 100 * precision,
        "recall": 100 * recall,
    }


def _hallusion_row(name: str, pairs: Sequence[tuple[Predicted, Row]]) -> dict[str, Any]:
    """An index is CATEGORY_KIND_VISUAL_SET_FIGURE_QUESTION."""
    together: Callable[[int], float] = lambda place: _all_right(
        (answer.cells.get("l2-category", ""), answer.index.split("_")[3], answer.index.split("_")[place], row["hit"])
        for answer, row in pairs
    )
    accuracy = mean([row["hit"] for _, row in pairs])
    return {"split": name, "aAcc": 100 * accuracy, "fAcc": 100 * together(4), "qAcc": 100 * together(5)}


def _all_right(questions: Any) -> float:
    """The share of groups, by all but the last part, that are right in whole."""
    groups = dict[tuple[str, ...], bool]()
    for *group, hit in questions:
        groups[tuple(group)] = groups.get(tuple(group), True) and hit
    return mean(list(groups.values()))
