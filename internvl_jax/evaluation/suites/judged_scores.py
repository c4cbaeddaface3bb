"""Suites that a judge alone can score: MathVerse, LogicVista, MMVet, CharXiv, MMBench-Video.

Shapes of the tables are those of VLMEvalKit at e8e78f05 (utils/mathverse.py, utils/logicvista.py, utils/mmvet.py,
charxiv.py, utils/mmbench_video.py). What the judge is asked is ours, but for CharXiv, whose table has it.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.evaluation.intervals import mean_interval
from internvl_jax.evaluation.suites import judges
from internvl_jax.evaluation.suites.suite import Judge, Predicted, Rated, Suite
from internvl_jax.evaluation.suites.text_matching import mean
from internvl_jax.evaluation.suites.tsv import as_list

_DESCRIPTIVE = {  # CharXiv's templates of questions
    **dict.fromkeys("1234567", "Information Extraction"),
    **dict.fromkeys(("8", "9", "13", "14", "15"), "Enumeration"),
    **dict.fromkeys(("10", "12", "19"), "Counting"),
    **dict.fromkeys(("11", "16", "18"), "Pattern Recognition"),
    "17": "Compositionality",
}
_REASONING = {"1": "Text-in-Chart", "2": "Text-in-General", "3": "Number-in-Chart", "4": "Number-in-General"}
_PERCEPTION = {  # MMBench-Video's dimensions
    "CP": ("Video Topic", "Video Emotion", "Video Scene", "Video Style"),
    "FP-S": ("OCR", "Object Recognition", "Attribute Recognition", "Event Recognition", "Human Motion", "Counting"),
    "FP-C": ("Spatial Relationship", "Human-object Interaction", "Human Interaction"),
    "HL": ("Hallucination",),
}
_THOUGHT = {
    "LR": ("Structuralized Image-Text Understanding", "Mathematical Calculation"),
    "AR": ("Physical Property", "Function Reasoning", "Identity Reasoning"),
    "RR": ("Natural Relation", "Physical Relation", "Social Relation"),
    "CSR": ("Common Sense Reasoning",),
    "TR": ("Counterfactual Reasoning", "Causal Reasoning", "Future Prediction"),
}
_VIDEO_GROUPS = {
    **_PERCEPTION,
    **_THOUGHT,
    "Perception": tuple(name for names in _PERCEPTION.values() for name in names),
    "Reasoning": tuple(name for names in _THOUGHT.values() for name in names),
    "Overall": tuple(name for names in (*_PERCEPTION.values(), *_THOUGHT.values()) for name in names),
}
_SKILLS = ("inductive", "deductive", "numerical", "spatial", "mechanical")
_MOST = 3  # points of an answer in MMBench-Video
_ABSURD = 1000  # no score is as large: a judge that has lost its thread writes on and on
_CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


def mathverse(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Percent by version of the problems, and within by subject and subfield."""
    asked, rows = _needed(suite, judge), list[dict[str, Any]]()
    for answer in answers:
        question = answer.cells.get("question_for_eval") or answer.cells["question"]
        said, true = judges.judged_final(asked, question, answer.text), answer.cells["answer"]
        hit = said == true.strip() or judges.judged_same(asked, question, true, said)
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
    return _counted(rows, {"Overall": None, **dict.fromkeys(_SKILLS)}, skills, "Task&Skill", False)


def mmvet(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """The judge's grades, 0 to 1, in percent, by capability."""
    asked, rows = _needed(suite, judge), list[dict[str, Any]]()
    for answer in answers:
        grade = judges.judged_grade(asked, answer.cells["question"], answer.cells["answer"], answer.text)
        rows.append({"index": answer.index, "score": grade})
    names = {**dict.fromkeys(_CAPABILITIES), "Overall": None}
    return _counted(rows, names, [answer.cells["category"] for answer in answers], "Category", True)


def charxiv(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """The judge's scores, 0 to 1, by kind of question. The table has what it is asked, and that it answers in JSON."""
    asked, column = _needed(suite, judge), "qid" if "descriptive" in suite.name else "inst_category"
    kinds = _DESCRIPTIVE if column == "qid" else _REASONING
    rows, found = list[dict[str, Any]](), dict[str, list[float]]()
    for answer in answers:
        cells = answer.cells
        said, score = _json_verdict(asked(cells["grading_query"].replace("{PREDICTION}", answer.text)))
        rows.append({"index": answer.index, "score": score, "extracted": said})
        kind = cells[column].removesuffix(".0")
        if kind not in kinds:
            raise InputError(f"row {answer.index} has the {column} {cells[column]!r}, which is none of {suite.name}'s.")
        found.setdefault(kinds[kind], []).append(score)
    overall = mean([row["score"] for row in rows])
    table = {name: mean(scores) for name, scores in found.items()}
    return Rated([table | {"Overall": overall}], rows, 100 * overall, len(answers))


def mmbench_video(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """The judge's scores, 0 to 3, as texts of two decimals, by group of dimensions and by dimension: 'all' counts an
    answer without a score as 0, 'valid' leaves it out.
    """
    asked, rows, scores = _needed(suite, judge), list[dict[str, Any]](), list[tuple[set[str], int]]()
    for answer in answers:
        cells = answer.cells
        said = judges.judged_likeness(asked, cells["question"], cells["answer"], answer.text)
        grade = -1 if said is None else said
        rows.append({"index": answer.index, "score": max(0, grade) / _MOST, "grade": grade})
        scores.append((set(as_list(cells["dimensions"])), grade))
    table: dict[str, dict[str, str]] = {}
    for size, groups in (("coarse", _VIDEO_GROUPS), ("fine", {name: (name,) for name in _VIDEO_GROUPS["Overall"]})):
        for kind, counts in (("all", lambda _: True), ("valid", lambda score: score >= 0)):
            table[f"{size}_{kind}"] = {
                name: f"{mean([max(score, 0) for own, score in scores if own & set(parts) and counts(score)]):.2f}"
                for name, parts in groups.items()
            }
    interval = mean_interval((row["score"] for row in rows), _MOST)
    return Rated(table, rows, mean([max(score, 0) for _, score in scores]), len(answers), interval)


def _needed(suite: Suite, judge: Judge | None) -> Judge:
    if judge is None:
        raise InputError(f"{suite.name} can be scored by a judge alone; give one by --judge.")
    return judge


def _json_verdict(reply: str) -> tuple[Any, float]:
    """(extracted answer, score) of a reply in JSON; a score of 0 where it is none."""
    try:
        found = json.loads(reply)
    except (ValueError, RecursionError):
        return None, 0.0
    if not isinstance(found, dict) or "extracted_answer" not in found:
        return None, 0.0
    score = found.get("score")
    is_score = isinstance(score, int | float) and abs(score) < _ABSURD  # NaN is not
    return found["extracted_answer"], float(score) if is_score else 0.0


def _counted(
    rows: list[dict[str, Any]], names: Mapping[str, None], kinds: Sequence[str], title: str, graded: bool
) -> Rated:
    """Rows of a table by parts of the kinds' names, 'Overall' being all.

    Args:
      graded: whether rows have scores; then what is of one kind alone counts twice there, as released.
    """
    column = "score" if graded else "hit"
    worth = [float(row[column]) for row in rows]
    table = []
    for name in names:
        times = lambda kind, name=name: 1 if name == "Overall" else (name in kind) + (graded and name == kind)
        own = [value for value, kind in zip(worth, kinds, strict=True) for _ in range(times(kind))]
        hits = {} if graded else {"hit": int(sum(own))}
        table.append({title: name, "tot": len(own), **hits, "acc": 100 * mean(own)})
    return Rated(table, rows, 100 * mean(worth), len(rows))


def _metadata(cells: Mapping[str, str]) -> Mapping[str, str]:
    """MathVerse's cell is a Python dict."""
    try:
        found = ast.literal_eval(cells.get("metadata", ""))
    except (ValueError, SyntaxError):
        return {}
    return found if isinstance(found, dict) else {}
