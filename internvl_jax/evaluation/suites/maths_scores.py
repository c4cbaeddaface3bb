"""MathVista, MathVision and DynaMath.

Source of the rules: VLMEvalKit at e8e78f05 (utils/mathvista.py, utils/mathv.py, dynamath.py).
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from internvl_jax.evaluation.intervals import mean_interval
from internvl_jax.evaluation.suites import maths_matching
from internvl_jax.evaluation.suites.judges import judged_final
from internvl_jax.evaluation.suites.options import infer_option
from internvl_jax.evaluation.suites.suite import Judge, Predicted, Rated, Suite
from internvl_jax.evaluation.suites.text_matching import mean
from internvl_jax.evaluation.suites.tsv import as_list


class _Seen(NamedTuple):
    """What was read in a response.

    Attributes:
      result: the answer, "" where there is none.
      prefetched: whether the rule found it.
      hit: whether it is right.
    """

    result: Any
    prefetched: bool
    hit: bool


def mathvista(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """By skill and by task; what is in no one's form goes to the judge."""
    groups = lambda cells: [*_skills(cells.get("skills", "")), cells.get("task", "")]
    return _counted(answers, judge, _see_mathvista, groups, "Task&Skill")


def mathvision(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """By subject."""
    return _counted(answers, judge, _see_mathvision, lambda cells: [cells.get("category", "")], "Subject")


def dynamath(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """The average over all variants of the questions, and the worst case: questions that are right in all variants."""
    rows, judged = list[dict[str, Any]](), 0

    def asked(prompt: str) -> str:
        nonlocal judged
        judged += 1
        return judge(prompt) if judge is not None else ""

    for answer in answers:
        kind, true = answer.cells["answer_type"], answer.cells["answer"]
        parsed, value, right = maths_matching.dynamath(answer.text, true, kind, asked if judge is not None else None)
        said = None if value is None else str(value)
        rows.append({"index": answer.index, "parse": parsed, "extracted": said, "correct": right, "hit": int(right)})
    every = [(answer.cells, row["correct"]) for answer, row in zip(answers, rows, strict=True)]
    all_right = dict[str, bool]()
    for cells, right in every:
        all_right[cells["qid"]] = all_right.get(cells["qid"], True) and right
    worst = [(cells, all_right[cells["qid"]]) for cells, _ in every if cells["varid"] in ("1", "1.0")]
    table = [_setting("Average", every), _setting("Worst Case", worst)]
    return Rated(table, rows, 100 * table[1]["Overall"], judged, mean_interval(right for _, right in worst))


def _setting(name: str, questions: Sequence[tuple[Mapping[str, str], bool]]) -> dict[str, Any]:
    row: dict[str, Any] = {"Setting": name, "Overall": mean([right for _, right in questions])}
    for column, title in (("subject", "Subject"), ("knowledge_level", "Level")):
        for part in dict.fromkeys(cells[column] for cells, _ in questions):
            row[f"{title}-{part}"] = mean([right for cells, right in questions if cells[column] == part])
    return row


def _counted(
    answers: Sequence[Predicted],
    judge: Judge | None,
    see: Callable[[Predicted, Judge | None], _Seen],
    groups: Callable[[Mapping[str, str]], list[str]],
    title: str,
) -> Rated:
    """How many questions of each group there are, how many answers the rule found, and how many are right."""
    rows, counts = list[dict[str, Any]](), {"Overall": [0, 0, 0]}
    for answer in answers:
        seen = see(answer, judge)
        rows.append({"index": answer.index, "prefetched": seen.prefetched, "res": seen.result, "hit": seen.hit})
        for name in ("Overall", *groups(answer.cells)):
            count = counts.setdefault(name, [0, 0, 0])
            for place, one in enumerate((True, seen.prefetched, seen.hit)):
                count[place] += one
    table: list[dict[str, Any]] = [
        {
            title: name,
            "tot": total,
            "prefetch": found,
            "hit": right,
            "prefetch_rate": 100 * found / max(1, total),
            "acc": 100 * right / max(1, total),
        }
        for name, (total, found, right) in counts.items()
    ]
    headline = table[0]["acc"]
    if title == "Subject":  # MathVision's are in the order of their names
        table.sort(key=lambda row: row[title])
    judged = sum(not row["prefetched"] for row in rows) if judge is not None else 0
    return Rated(table, rows, headline, judged)


def _see_mathvista(answer: Predicted, judge: Judge | None) -> _Seen:
    cells = answer.cells
    choices = _choices(cells) if cells["question_type"] == "multi_choice" else None
    true = cells["answer"] if choices is None else cells["answer_option"]
    found = maths_matching.prefetched(answer.text, cells["answer"], cells["answer_type"], choices)
    result = found
    if found is None:
        result = judged_final(judge, cells["question"], answer.text) if judge is not None else ""
    right = maths_matching.is_extracted_right(str(result), true, cells["answer_type"], choices)
    return _Seen(result, found is not None, right)


def _see_mathvision(answer: Predicted, judge: Judge | None) -> _Seen:
    cells, choices = answer.cells, _choices(answer.cells)
    options = maths_matching.lettered(choices)
    found = infer_option(answer.text, options) if choices else answer.text
    if found is not None and not choices and not maths_matching.same_expression(found, cells["answer"]):
        found = None
    result = found
    if found is None:
        result = judged_final(judge, cells["question"], answer.text) if judge is not None else ""
    said = (infer_option(result, options) or "False") if choices else result
    return _Seen(result, bool(found), maths_matching.same_expression(said, cells["answer"]))


def _choices(cells: Mapping[str, str]) -> Sequence[Any]:
    return as_list(cells.get("choices", "")) if cells.get("choices", "").startswith("[") else []


def _skills(cell: str) -> list[str]:
    """A list of names, or one name."""
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return [cell]
    return [str(name) for name in found] if isinstance(found, list) else [cell]
