"""Yes or no: POPE, HallusionBench, MME. Source of the rules: VLMEvalKit at e8e78f05, vlmeval/dataset/utils/yorn.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from internvl_jax.evaluation.intervals import Sums, clusters, headline_interval
from internvl_jax.evaluation.suites.judges import judged_yes_no
from internvl_jax.evaluation.suites.suite import Judge, Predicted, Rated, Suite
from internvl_jax.evaluation.suites.text_matching import UNKNOWN, mean, yes_or_no

_PERCEPTION = (
    *("OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position", "posters", "scene"),
)
_REASONING = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")
_MME_MOST = 200  # points of a category

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
    terms = lambda true, said: (float(true == said == "Yes"), float(true == "Yes") + (said == "Yes"))
    counted = clusters((row["index"], terms(true, row["extracted"])) for _, true, row in exploded)
    interval = headline_interval([("", each) for each in counted], _f1_of)
    return Rated(table, rows, table[0]["Overall"], judged, interval)


def hallusion(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Percent of questions (aAcc), of figures (fAcc) and of questions over all their figures (qAcc) that are right."""
    rows, judged = _rated(answers, judge)
    pairs = list(zip(answers, rows, strict=True))
    table = [_hallusion_row("Overall", pairs)]
    for column in ("category", "l2-category"):
        for name in sorted({answer.cells[column] for answer in answers if answer.cells.get(column)}):
            table.append(_hallusion_row(name, [pair for pair in pairs if pair[0].cells[column] == name]))
    headline = mean([table[0][name] for name in ("aAcc", "fAcc", "qAcc")])
    return Rated(table, rows, headline, judged, _hallusion_interval(pairs))


def mme(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """A category's score is percent of right questions plus percent of pictures whose two questions are both right."""
    rows, judged = _rated(answers, judge)
    found = dict[str, dict[str, list[bool]]]()
    for answer, row in zip(answers, rows, strict=True):
        pictures = found.setdefault(answer.cells["category"], {})
        pictures.setdefault(answer.cells.get("image_path", answer.index), []).append(row["hit"])
    scores, counted = {}, list[tuple[str, Sequence[float]]]()
    for category, pictures in found.items():
        questions = [hit for hits in pictures.values() for hit in hits]
        both = [hits[0] and hits[1] for hits in pictures.values() if len(hits) > 1]
        scores[category] = 100 * mean(questions) + (100 * mean(both) if both else 0.0)
        if category in (*_PERCEPTION, *_REASONING):
            counted += [(category, _mme_terms(hits)) for hits in pictures.values()]
    sums = {
        name: sum(scores.get(category, 0.0) for category in categories)
        for name, categories in (("perception", _PERCEPTION), ("reasoning", _REASONING))
    }
    most = _MME_MOST * len(_PERCEPTION + _REASONING)
    return Rated([sums | scores], rows, sum(sums.values()), judged, headline_interval(counted, _mme_of, most))


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


def _f1_of(sums: Sums) -> float:
    found, either = sums[""]
    return 200 * found / either if found else 0.0


def _mme_terms(hits: Sequence[bool]) -> tuple[float, ...]:
    """Of a picture: right questions, questions, whether both are right, whether there are two."""
    return sum(hits), len(hits), float(len(hits) > 1 and hits[0] and hits[1]), float(len(hits) > 1)


def _mme_of(sums: Sums) -> float:
    return sum(_ratio(right, of) + _ratio(both, twos) for right, of, both, twos in sums.values())


def _ratio(right: float, of: float) -> float:
    """In percent; 0 of nothing."""
    return 100 * right / of if of else 0.0


def _hallusion_interval(pairs: Sequence[tuple[Predicted, Row]]) -> tuple[float, float]:
    """Figures and questions cross within sets, which are drawn as a whole."""
    sets = dict[tuple[str, str], list[tuple[Predicted, Row]]]()
    for answer, row in pairs:
        sets.setdefault((answer.cells.get("l2-category", ""), answer.index.split("_")[3]), []).append((answer, row))
    counted = []
    for own in sets.values():
        hits = [[row["hit"] for _, row in own], *(list(_together(own, place).values()) for place in (4, 5))]
        counted.append(("", [float(term) for each in hits for term in (sum(each), len(each))]))
    return headline_interval(counted, lambda sums: mean([_ratio(*sums[""][at : at + 2]) for at in (0, 2, 4)]))


def _hallusion_row(name: str, pairs: Sequence[tuple[Predicted, Row]]) -> dict[str, Any]:
    share = lambda place: 100 * mean(list(_together(pairs, place).values()))
    accuracy = mean([row["hit"] for _, row in pairs])
    return {"split": name, "aAcc": 100 * accuracy, "fAcc": share(4), "qAcc": share(5)}


def _together(pairs: Sequence[tuple[Predicted, Row]], place: int) -> dict[tuple[str, ...], bool]:
    """Whether all questions are right that have a kind, a set and that part of the index in common; an index is
    CATEGORY_KIND_VISUAL_SET_FIGURE_QUESTION.
    """
    groups = dict[tuple[str, ...], bool]()
    for answer, row in pairs:
        parts = answer.index.split("_")
        group = answer.cells.get("l2-category", ""), parts[3], parts[place]
        groups[group] = groups.get(group, True) and row["hit"]
    return groups
