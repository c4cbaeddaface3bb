"""Suites that a judge alone can score: MathVerse, LogicVista, MMVet, CharXiv.

Shapes of the tables are those of VLMEvalKit at e8e78f05 (utils/mathverse.py, utils/logicvista.py, utils/mmvet.py); what
the judge is asked is ours.
"""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.evaluation.suites import judges
from internvl_jax.evaluation.suites.suite import Judge, Predicted, Rated, Suite
from internvl_jax.evaluation.suites.text_matching import mean

_SKILLS = ("inductive", "deductive", "numerical", "spatial", "mechanical")
_CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


def mathverse(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Percent by version of the problems, and within by subject and subfield."""
    asked, rows = _needed(suite, judge), list[dict[str, Any]]()
    for answer in answers:
        question = answer.cells.get("question_for_eval") or answer.cells["question"]
        said, true = judges.judged_final(asked, question, answer.text), answer.cells["answer"]
        hit = said == true.strip() or judges.judged_grade(asked, question, true, said) >= 0.5
        rows.append({"index": answer.index, "hit": int(hit), "extracted": said})
    pairs = [(answer.cells, row["hit"]) for answer, row in zip(answers, rows, strict=True)]
    parts = [(cells, _metadata(cells), hit) for cells, hit in pairs]
    table = []
    for version in sorted({cells["problem_version"] for cells, _ in pairs}):
        own = [(about, hit) for cells, about, hit in parts if cells["problem_version"] == version]
        row = {"split": version, "Overall": 100 * mean([hit for _, hit in own])}
        for column in ("subject", "subfield"):
            for name in sorted({about[column] for _, about, _ in parts if about.get(column)}):
                row[name] = 100 * mean([hit for about, hit in own if about.get(column) == name])
        table.append(row)
    return Rated(table, rows, 100 * mean([hit for _, hit in pairs]), len(answers))


def logicvista(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Letters that the judge names, all of the true ones and no other."""
    asked, rows = _needed(suite, judge), list[dict[str, Any]]()
    for answer in answers:
        said = judges.judged_letters(asked, answer.cells["question"], answer.text)
        true = sorted(letter.lower() for letter in answer.cells["answer"].split(", "))
        rows.append({"index": answer.index, "hit": int(sorted(said.lower()) == true), "extracted": said})
    skills = [answer.cells["skill"] for answer in answers]
    return _counted(rows, {"Overall": None, **dict.fromkeys(_SKILLS)}, skills, "Task&Skill", len(answers))


def mmvet(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """The judge's grades, 0 to 1, in percent, by capability."""
    asked, rows = _needed(suite, judge), list[dict[str, Any]]()
    for answer in answers:
        grade = judges.judged_grade(asked, answer.cells["question"], answer.cells["answer"], answer.text)
        rows.append({"index": answer.index, "score": grade})
    names = {**dict.fromkeys(_CAPABILITIES), "Overall": None}
    return _counted(rows, names, [answer.cells["category"] for answer in answers], "Category", len(answers))


def charxiv(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Right or wrong as the judge has it, in percent."""
    asked = _needed(suite, judge)
    rows: list[dict[str, Any]] = [
        {
            "index": answer.index,
            "hit": int(
                judges.judged_grade(asked, answer.cells["question"], answer.cells["answer"], answer.text) >= 0.5
            ),
        }
        for answer in answers
    ]
    overall = 100 * mean([row["hit"] for row in rows])
    return Rated([{"Overall": overall}], rows, overall, len(answers))


def _needed(suite: Suite, judge: Judge | None) -> Judge:
    if judge is None:
        raise InputError(f"{suite.name} can be scored by a judge alone; give one by --judge.")
    return judge


def _counted(
    rows: list[dict[str, Any]], names: Mapping[str, None], kinds: Sequence[str], title: str, judged: int
) -> Rated:
    """Rows of a table by parts of the kinds' names, 'Overall' being all."""
    worth = [float(row["score"] if "score" in row else row["hit"]) for row in rows]
    table = []
    for name in names:
        own = [value for value, kind in zip(worth, kinds, strict=True) if name == "Overall" or name in kind]
        table.append({title: name, "tot": len(own), "hit": sum(own), "acc": 100 * mean(own)})
    return Rated(table, rows, 100 * mean(worth), judged)


def _metadata(cells: Mapping[str, str]) -> Mapping[str, str]:
    """MathVerse's cell is a Python dict."""
    try:
        found = ast.literal_eval(cells.get("metadata", ""))
    except (ValueError, SyntaxError):
        return {}
    return found if isinstance(found, dict) else {}
