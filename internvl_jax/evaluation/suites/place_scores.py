"""Boxes around what is described, and clicks into it: RefCOCO, ScreenSpot.

Source of the rules: VLMEvalKit at e8e78f05 (refcoco.py, GUI/screenspot.py).
"""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.evaluation.intervals import Sums, headline_interval
from internvl_jax.evaluation.suites import box_matching
from internvl_jax.evaluation.suites.suite import Judge, Predicted, Rated, Suite
from internvl_jax.evaluation.suites.text_matching import mean

_SPLITS = (
    *("RefCOCO_val", "RefCOCO_testA", "RefCOCO_testB", "RefCOCO+_val", "RefCOCO+_testA", "RefCOCO+_testB"),
    *("RefCOCOg_val", "RefCOCOg_test"),
)
_PARTS = {"val": "val", "test": "test", "testa": "testA", "testb": "testB"}
WIDTH, HEIGHT = "picture width", "picture height"  # cells that are read off the picture, in pixels


def split_of(cells: Mapping[str, str]) -> str:
    """RefCOCO's split of a row: RefCOCO_testA of the category 'RefCOCO testA', where no column says it."""
    if cells.get("split"):
        return cells["split"]
    name, _, rest = cells.get("category", "").strip().partition(" ")
    plain = re.sub(r"[\s_-]+", "", rest.lower())
    part = _PARTS.get(plain) or re.sub("[ -]", "_", rest.strip())
    return f"{name or 'RefCOCO'}_{part}" if part else name or "RefCOCO"


def refcoco(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Percent of boxes with an IoU of 0.5 and more, by split; 'Average' is the mean of the eight official ones."""
    rows = [_box_row(answer) for answer in answers]
    table = []
    present = {row["split"] for row in rows}
    for split in [*(name for name in _SPLITS if name in present), *sorted(present - set(_SPLITS))]:
        own = [row for row in rows if row["split"] == split]
        overlap = mean([row["iou"] for row in own])
        precision = 100 * mean([row["hit"] for row in own])
        table.append({"Split": split, "Precision@1": precision, "Average IoU": overlap, "Samples": len(own)})
    official = [row for row in table if row["Split"] in _SPLITS]
    average = {
        "Split": "Average",
        "Precision@1": mean([row["Precision@1"] for row in official or table]),
        "Average IoU": mean([row["Average IoU"] for row in official or table]),
        "Samples": sum(row["Samples"] for row in official or table),
    }
    shown = {row["Split"] for row in official or table}
    counted = [(row["split"], (row["hit"], 1)) for row in rows if row["split"] in shown]
    return Rated([*table, average], rows, average["Precision@1"], interval=headline_interval(counted, _mean_of_splits))


def _mean_of_splits(sums: Sums) -> float:
    return mean([100 * hits / boxes for hits, boxes in sums.values()])


def screenspot(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Percent of clicks into the box, of all, of texts and of icons; a click that is no number is an error of form.

    As released, where categories or kinds are put together each of their questions counts once for every question of
    both its category and its kind.
    """
    rows, counts = list[dict[str, Any]](), dict[str, list[int]]()
    for answer in answers:
        cells = answer.cells
        width, height = (int(cells[side]) for side in (WIDTH, HEIGHT))
        click = box_matching.parse_click(answer.text)
        hit = click is not None and box_matching.is_inside(click, _numbers(cells["bbox"], answer.index), width, height)
        key = f"{cells['category']}:{cells['data_type']}" if "category" in cells else cells["data_type"]
        counts.setdefault(key, []).append(-1 if click is None else int(hit))
        rows.append({"index": answer.index, "hit": int(hit), "click": click})
    percent = lambda values: 100 * mean([value > 0 for value in values])
    every = [value for values in counts.values() for value in values]
    among = lambda belongs: [value for key, own in counts.items() if belongs(key) for value in own * len(own)]
    score: dict[str, Any] = {f"{key}:cnt": len(values) for key, values in counts.items()}
    score |= {
        "Overall_Accuracy": percent(every),
        "Format_Err_Rate": 100 * mean([value < 0 for value in every]),
        "Text_Accuracy": percent(among(lambda key: key.endswith("text"))),
        "Icon_Accuracy": percent(among(lambda key: key.endswith("icon"))),
    }
    for name in dict.fromkeys(answer.cells["category"] for answer in answers if "category" in answer.cells):
        score[f"{name}_Accuracy"] = percent(among(lambda key, name=name: key.split(":")[0] == name))
    return Rated(score, rows, score["Overall_Accuracy"])


def _box_row(answer: Predicted) -> dict[str, Any]:
    cells, said = answer.cells, box_matching.parse_box(answer.text)
    width, height = (_side(cells, name) for name in ("width", "height"))
    box = None if said is None else box_matching.in_pixels(said, width, height)
    overlap = 0.0 if box is None else box_matching.iou(box, _true_box(answer, width, height))
    shown = None if box is None else "[" + ", ".join(f"{part:.6f}" for part in box) + "]"
    hit = int(overlap >= box_matching.HIT)
    return {"index": answer.index, "pred_bbox": shown, "iou": overlap, "hit": hit, "split": split_of(cells)}


def _true_box(answer: Predicted, width: float, height: float) -> box_matching.Box:
    names = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    if all(answer.cells.get(name) for name in names):
        x1, y1, x2, y2 = (_number(answer.cells[name], answer.index) for name in names)
        return x1, y1, x2, y2
    box = box_matching.parse_box(answer.cells["answer"])
    if box is None:
        raise InputError(f"row {answer.index} has no box: neither columns bbox_x1 to bbox_y2 nor one in its answer.")
    scale = (width, height) if max(map(abs, box)) <= 1.5 else (1.0, 1.0)
    return box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]


def _side(cells: Mapping[str, str], name: str) -> float:
    """In pixels; 1 where none is given, as released."""
    try:
        return max(0.0, float(cells.get(name, ""))) or 1.0
    except ValueError:
        return 1.0


def _number(cell: str, index: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"row {index} has {cell!r} in its box; give numbers.") from None


def _numbers(cell: str, index: str) -> list[float]:
    try:
        box = [float(part) for part in ast.literal_eval(cell)]
    except (ValueError, SyntaxError, TypeError):
        box = []
    if len(box) != 4:
        raise InputError(f"row {index} has the box {cell!r}; give [x, y, width, height].")
    return box
