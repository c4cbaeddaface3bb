"""Questions about videos: MVBench, Video-MME, MLVU, LongVideoBench, VSI-Bench.

Source of the rules: VLMEvalKit at e8e78f05 (mvbench.py, utils/{videomme,mlvu,longvideobench}.py, vsibench.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.evaluation.intervals import Sums, headline_interval
from internvl_jax.evaluation.suites import video_matching
from internvl_jax.evaluation.suites.judges import judged_option
from internvl_jax.evaluation.suites.maths_matching import lettered, typed_value
from internvl_jax.evaluation.suites.options import infer_option
from internvl_jax.evaluation.suites.suite import Judge, Predicted, Rated, Suite
from internvl_jax.evaluation.suites.text_matching import mean
from internvl_jax.evaluation.suites.tsv import LETTERS, as_list

_DURATIONS = ("short", "medium", "long")
_VIDEO_MME = {
    "domain": (
        *("Knowledge", "Film & Television", "Sports Competition", "Artistic Performance", "Life Record"),
        "Multilingual",
    ),
    "sub_category": (
        *("Humanity & History", "Literature & Art", "Biology & Medicine", "Finance & Commerce", "Astronomy"),
        *("Geography", "Law", "Life Tip", "Technology", "Animation", "Movie & TV Show", "Documentary", "News Report"),
        *("Esports", "Basketball", "Football", "Athletics", "Other Sports", "Stage Play", "Magic Show"),
        *("Variety Show", "Acrobatics", "Handicraft", "Food", "Fashion", "Daily Life", "Travel", "Pet & Animal"),
        *("Exercise", "Multilingual"),
    ),
    "task_type": (
        *("Temporal Perception", "Spatial Perception", "Attribute Perception", "Action Recognition"),
        *("Object Recognition", "OCR Problems", "Counting Problem", "Temporal Reasoning", "Spatial Reasoning"),
        *("Action Reasoning", "Object Reasoning", "Information Synopsis"),
    ),
}
_LENGTHS = ("15", "60", "600", "3600")  # seconds
_LONG_VIDEO = (
    *("S2E", "S2O", "S2A", "E2O", "O2E", "T2E", "T2O", "T2A", "E3E", "O3O", "SSS", "SOS", "SAA", "T3E", "T3O", "TOS"),
    "TAA",
)
_NUMERIC = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
_VSI = (*_NUMERIC, "object_rel_distance", "object_rel_direction", "route_planning", "obj_appearance_order")
_DIRECTIONS = tuple(f"object_rel_direction_{level}_accuracy" for level in ("easy", "medium", "hard"))
_MRA = "MRA:.5:.95:.05"


def mvbench(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Right answers, questions and percent by kind of task; what the first word doesn't tell, the option rule may."""
    rows, judged, found = _matched(answers, judge, video_matching.starts_with_option)
    found["overall"] = [row["hit"] for row in rows]
    score = {name: [sum(hits), len(hits), f"{mean(hits):.2%}"] for name, hits in found.items()}
    return Rated(score, rows, 100 * mean(found["overall"]), judged)


def mlvu(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """MLVU's questions with options: right answers and questions by kind of task; M-Avg is the percent of them all."""
    rows, judged, found = _matched(answers, judge, video_matching.is_letter_of)
    score = {name: [sum(hits), len(hits)] for name, hits in found.items()}
    return Rated(score, rows, 100 * mean([row["hit"] for row in rows]), judged)


def long_video_bench(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Shares, as texts of three decimals, by length of the video in seconds and within it by kind of question."""
    rows, judged = list[dict[str, Any]](), 0
    for answer in answers:
        said, cells = video_matching.first_letter(answer.text, "ABCDE"), answer.cells
        if not said and judge is not None:
            judged += 1
            options = lettered(as_list(cells["candidates"]))
            said = judged_option(judge, cells["question"], options, answer.text) or ""
        rows.append({"index": answer.index, "hit": int(said == LETTERS[_whole(answer, "correct_choice")])})
    hits = [(answer.cells, row["hit"]) for answer, row in zip(answers, rows, strict=True)]
    score = {}
    for length in (*_LENGTHS, "overall"):
        part = [hit for hit in hits if length in ("overall", hit[0]["duration_group"])]
        kinds = {name: _share(part, "question_category", name) for name in _LONG_VIDEO}
        score[length] = {"overall": _share(part, "", ""), "question_category": kinds}
    return Rated(score, rows, 100 * mean([hit for _, hit in hits]), judged)


def video_mme(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Shares, as texts of three decimals, by length of the video and within it by domain and so on."""
    rows, judged = list[dict[str, Any]](), 0
    for answer in answers:
        said, cells = video_matching.first_letter(answer.text), answer.cells
        if not said and judge is not None:
            judged += 1
            options = lettered([option[3:] for option in as_list(cells["candidates"])])
            said = judged_option(judge, cells["question"], options, answer.text) or ""
        rows.append({"index": answer.index, "hit": int(said == cells["answer"]), "extracted": said})
    hits = [(answer.cells, row["hit"]) for answer, row in zip(answers, rows, strict=True)]
    score: dict[str, Any] = {
        name: _video_mme_part([hit for hit in hits if hit[0]["duration"] == name]) for name in _DURATIONS
    }
    score["overall"] = _video_mme_part(hits)
    return Rated(score, rows, 100 * mean([hit for _, hit in hits]), judged)


def vsi(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Percent: accuracy of options, mean relative accuracy of numbers; 'overall' is the mean over kinds of questions,
    the three about directions being one.
    """
    rows, found = list[dict[str, Any]](), dict[str, list[float]]()
    for answer in answers:
        kind, true = answer.cells["question_type"], answer.cells["answer"]
        if kind in _NUMERIC:
            number, target = video_matching.vsi_number(answer.text), typed_value(true, "float")
            worth = 0.0 if number is None or target is None else video_matching.relative_accuracy(number, target)
            rows.append({"index": answer.index, "score": worth, "extracted": number})
        else:
            letter = video_matching.vsi_option(answer.text)
            worth = float(letter == video_matching.vsi_option(true))
            rows.append({"index": answer.index, "score": worth, "extracted": letter})
        found.setdefault(f"{kind}_{_MRA if kind in _NUMERIC else 'accuracy'}", []).append(worth)
    means = _kinds({name: mean(scores) for name, scores in found.items()})
    overall = 100 * mean(list(means.values())) if means else 0.0
    counted = [(name, (worth, 1)) for name, scores in found.items() for worth in scores]
    interval = headline_interval(counted, _mean_of_kinds)
    names = [f"{kind}_{measure}" for kind in _VSI for measure in ("accuracy", _MRA)]
    score = {"overall": overall} | {name: 100 * means[name] for name in names if name in means}
    return Rated(score, rows, overall, interval=interval)


def _kinds(means: dict[str, float]) -> dict[str, float]:
    """The three kinds about directions as one, where all are there."""
    if all(name in means for name in _DIRECTIONS):
        means["object_rel_direction_accuracy"] = mean([means.pop(name) for name in _DIRECTIONS])
    return means


def _mean_of_kinds(sums: Sums) -> float:
    return 100 * mean(list(_kinds({name: worth / number for name, (worth, number) in sums.items()}).values()))


def _matched(
    answers: Sequence[Predicted], judge: Judge | None, is_right: Callable[[str, str], bool]
) -> tuple[list[dict[str, Any]], int, dict[str, list[int]]]:
    """A record a question, how many a judge decided, and hits by kind of task.

    Args:
      is_right: of a prediction and the true option, '(A) text'; what it denies, the option rule or a judge may see.
    """
    rows, judged, found = list[dict[str, Any]](), 0, dict[str, list[int]]()
    for answer in answers:
        cells, options = answer.cells, lettered(as_list(answer.cells["candidates"]))
        letter = next((letter for letter, text in options.items() if text == cells["answer"]), "@")  # as released
        hit = is_right(answer.text, f"({letter}) {cells['answer']}")
        if not hit:
            said = infer_option(answer.text, options)
            if said is None and judge is not None:
                judged += 1
                said = judged_option(judge, cells["question"], options, answer.text)
            hit = said == letter
        rows.append({"index": answer.index, "hit": int(hit)})
        found.setdefault(cells["task_type"], []).append(int(hit))
    return rows, judged, found


def _video_mme_part(hits: Sequence[tuple[Mapping[str, str], int]]) -> dict[str, Any]:
    part: dict[str, Any] = {"overall": _share(hits, "", "")}
    for column, names in _VIDEO_MME.items():
        part[column] = {name: _share(hits, column, name) for name in names}
    return part


def _share(hits: Sequence[tuple[Mapping[str, str], int]], column: str, name: str) -> str:
    """Of the right ones among those of a name in a column; of all, without a column."""
    return f"{mean([hit for cells, hit in hits if not column or cells[column] == name]):.3f}"


def _whole(answer: Predicted, column: str) -> int:
    cell = answer.cells[column]
    if not cell.isdecimal() or int(cell) >= len(LETTERS):
        raise InputError(f"row {answer.index} has the {column} {cell!r}; give the number of an option, from 0.")
    return int(cell)
