"""Multiple choice: accuracy by split and category, questions in rotations, and the tables of two sets of their own.

Source of the rules: VLMEvalKit at e8e78f05, vlmeval/dataset/utils/multiple_choice.py.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.evaluation.intervals import mean_interval
from internvl_jax.evaluation.suites.judges import judged_option
from internvl_jax.evaluation.suites.options import NONE_OF_THEM, infer_option
from internvl_jax.evaluation.suites.suite import Judge, Predicted, Rated, Suite
from internvl_jax.evaluation.suites.text_matching import mean
from internvl_jax.evaluation.suites.tsv import LETTERS
from internvl_jax.evaluation.suites.video_matching import first_of_five

_ROTATION = 1_000_000  # between the indices of a question's rotations
_MMBENCH = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
_MMT = {
    "visual_recognition": "VR",
    "localization": "Loc",
    "ocr": "OCR",
    "counting": "Count",
    "hallucination": "HLN",
    "image_retrieval": "IR",
    "threed": "3D",
    "visual_captioning": "VC",
    "visual_grounding": "VG",
    "doc_understanding": "DU",
    "action_recognition": "AR",
    "pixel_level_perception": "PLP",
    "image-to-image_translation": "I2IT",
    "relation_reasoning": "RR",
    "intelligence_quotient_test": "IQT",
    "emotion": "Emo",
    "visual_illusion": "VI",
    "meme_understanding": "MemU",
    "visual_prompt_understanding": "VPU",
    "anomaly_detection": "AND",
    "keypoint_detection": "KD",
    "visual_commonsense_reasoning": "VCR",
    "image_evaluation_judgement": "IEJ",
    "multiple_image_analysis": "MIA",
    "cross_image_matching": "CIM",
    "temporal_understanding": "TU",
    "visual_code": "VP",
    "medical_understanding": "MedU",
    "autonomous_driving": "AUD",
    "discipline_knowledge_reasoning": "DKR",
    "embodied_ai": "EA",
    "gui_navigation": "GN",
}
_REAL_WORLD = dict.fromkeys(
    ("Reasoning", "Perception"),
    ("Monitoring", "Autonomous_Driving", "OCR with Complex Context", "Diagram and Table", "Remote Sensing"),
)

Hits = Sequence[tuple[Mapping[str, str], int]]  # cells of a question, and whether it is right


def choice(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Every question counts alone; see `Rule`."""
    rows, judged = _rated(suite, answers, judge)
    return _of_split(_hits(answers, rows), rows, judged)


def circular(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """A question counts if it is right in all rotations; one that is wrong decides, before a judge is asked."""
    groups = dict[str, list[Predicted]]()
    if strange := [answer.index for answer in answers if not answer.index.lstrip("-").isdigit()]:
        raise InputError(f"{suite.name} tells rotations by whole numbers, and has the index {strange[0]!r}.")
    for answer in answers:
        groups.setdefault(str(int(answer.cells.get("g_index") or int(answer.index) % _ROTATION)), []).append(answer)
    rows, mains, judged = list[dict[str, Any]](), list[Mapping[str, str]](), 0
    for index, group in groups.items():
        main = [answer.cells for answer in group if answer.index == index]
        if not main:
            continue
        seen = [infer_option(answer.text, answer.options) for answer in group]
        true = [answer.cells["answer"] for answer in group]
        is_open = all(letter in (None, wanted) for letter, wanted in zip(seen, true, strict=True))
        if is_open and None in seen and judge is not None:
            judged += 1
            seen = [
                letter or judged_option(judge, answer.cells["question"], answer.options, answer.text)
                for letter, answer in zip(seen, group, strict=True)
            ]
        rows.append({"index": index, "hit": int(seen == true), "extracted": seen})
        mains.append(main[0])
    return _of_split([(cells, row["hit"]) for cells, row in zip(mains, rows, strict=True)], rows, judged)


def mmt(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """MMT-Bench: splits and all of them together; a kind of task is the mean of its tasks."""
    rows, judged = _rated(suite, answers, judge)
    hits = _hits(answers, rows)
    splits = sorted({cells.get("split") or "none" for cells, _ in hits})
    parts = [(split, [hit for hit in hits if (hit[0].get("split") or "none") == split]) for split in splits]
    table: list[dict[str, Any]] = []
    for name, part in [*parts, ("ALL", hits)]:
        tasks = {task: _share(part, "category", task) for task in _names(hits, "category")}
        row: dict[str, Any] = {"split": name, "Overall": mean([hit for _, hit in part]), **tasks}
        for kind in _names(hits, "l2-category"):
            own = _names([hit for hit in hits if hit[0].get("l2-category") == kind], "category")
            row[_MMT.get(kind, kind)] = mean([tasks[task] for task in own])
        table.append(row)
    return Rated(table, rows, 100 * table[-1]["Overall"], judged)


def real_world(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """MME-RealWorld: the first letter of the answer, by task, subtask and category."""
    rows = list[dict[str, Any]]()
    for answer in answers:
        said = first_of_five(_within_tags(answer.text))
        rows.append({"index": answer.index, "hit": int(said == answer.cells["answer"]), "extracted": said})
    counted = dict[tuple[str, str, str], list[int]]()
    for cells, hit in _hits(answers, rows):
        task, subtask = (cells["category"].split("/") + [""])[:2]
        kind = cells["l2-category"].lower()
        kind = kind.split("/")[0] + "/attribute" if "attribute" in kind else kind
        counted.setdefault((task, subtask, kind), []).append(hit)
    score: dict[str, Any] = {"Overall": mean([row["hit"] for row in rows])}
    for task, subtasks in _REAL_WORLD.items():
        score[task] = {}
        for subtask in subtasks:
            own = {kind: hits for (one, other, kind), hits in counted.items() if (one, other) == (task, subtask)}
            score[task][subtask] = {kind: mean(hits) for kind, hits in own.items()} | {"Avg": _mean_or_0(own.values())}
        score[task]["Avg"] = _mean_or_0(hits for (one, _, _), hits in counted.items() if one == task)
    return Rated(score, rows, 100 * score["Overall"])


def by_split(hits: Hits) -> list[dict[str, Any]]:
    """A row a split: accuracy over all, by kind and by category; NaN where a split has no question of one."""
    splits = sorted({cells.get("split") or "none" for cells, _ in hits})
    parts = {split: [hit for hit in hits if (hit[0].get("split") or "none") == split] for split in splits}
    table = [{"split": split, "Overall": mean([hit for _, hit in part])} for split, part in parts.items()]
    for column in ("l2-category", "category"):
        for name in _names(hits, column):
            for row, part in zip(table, parts.values(), strict=True):
                row[_MMBENCH.get(name, name)] = _share(part, column, name)
    return table


def _of_split(hits: Hits, rows: list[dict[str, Any]], judged: int) -> Rated:
    """The table by splits; its headline is of the one that papers report: validation, or the only one, or the first."""
    table = by_split(hits)
    reported = [row for row in table if row["split"] == "validation"] or table
    if not reported:
        return Rated(table, rows, math.nan, judged)
    own = [hit for cells, hit in hits if (cells.get("split") or "none") == reported[0]["split"]]
    return Rated(table, rows, 100 * reported[0]["Overall"], judged, mean_interval(own))


def _rated(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> tuple[list[dict[str, Any]], int]:
    rows, judged = list[dict[str, Any]](), 0
    for answer in answers:
        options, true = dict(answer.options), answer.cells["answer"]
        if "MMMU" in suite.name:  # questions without options are asked as whether the answer is the one
            if "A" not in options:
                options |= {"A": true, "B": "Other Answers"}
            true = true if len(true) == 1 and true in LETTERS else "A"
        said = infer_option(answer.text, options)
        if said is None and judge is not None:
            judged += 1
            said = judged_option(judge, answer.cells["question"], options, answer.text)
        rows.append({"index": answer.index, "hit": int(said == true), "extracted": said or NONE_OF_THEM})
    return rows, judged


def _hits(answers: Sequence[Predicted], rows: Sequence[Mapping[str, Any]]) -> Hits:
    return [(answer.cells, row["hit"]) for answer, row in zip(answers, rows, strict=True)]


def _names(hits: Hits, column: str) -> list[str]:
    return sorted({cells[column] for cells, _ in hits if cells.get(column)})


def _share(hits: Hits, column: str, name: str) -> float:
    return mean([hit for cells, hit in hits if cells.get(column) == name])


def _mean_or_0(parts: Iterable[Sequence[int]]) -> float:
    every = [hit for part in parts for hit in part]
    return mean(every) if every else 0.0


def _within_tags(text: str) -> str:
    """What is between <answer> and </answer>, in capitals; all of it where there are no such tags."""
    _, tag, rest = text.partition("<answer>")
    inside, end, _ = rest.partition("</answer>")
    return inside.strip().upper() if tag and end else text
