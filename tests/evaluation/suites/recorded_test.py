"""Prompts, tiles, scores and hits of 66 data sets, as the official evaluation code gave them for the same tables."""

import json
import math
import pathlib
import re

import pytest

from internvl_jax.evaluation.intervals import mean_interval
from internvl_jax.evaluation.suites import suite_file, suite_list

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
FOLDER, OTHERS, VIDEOS = GOLDEN / "eval_image", GOLDEN / "eval_others", GOLDEN / "eval_video"
FRAMES = 8
MARK = re.compile(r"zq\d{3}")  # in questions that a judge was asked about
NAMES = sorted(json.loads((FOLDER / "index.json").read_text()))
OTHER_NAMES = sorted(json.loads((OTHERS / "index.json").read_text()))
ASKED = [(FOLDER, name) for name in NAMES] + [(OTHERS, name) for name in OTHER_NAMES]
# Videos, their folder and how many questions are scored.
SHOWN = {
    "MVBench": (VIDEOS, 36),
    "Video-MME": (VIDEOS, 48),
    "VSI-Bench": (VIDEOS, 50),
    "MMBench-Video": (OTHERS, 36),
    "MLVU_MCQ": (OTHERS, 28),
    "LongVideoBench": (OTHERS, 40),
}
# All that is recorded: prompts in three modes, sets with scores (those of videos aside), rows.
COUNTS = {FOLDER: (1_120, 28, 882), OTHERS: (938, 31, 690)}


def read(folder, *path):
    return json.loads(folder.joinpath(*path).read_text())


def opened(folder, name):
    return suite_file.open_suite(suite_list.get_suite(name), folder / "data", frames=FRAMES)


def same(found, wanted):
    """Floats to 1e-6, all else exactly; null is the mean of nothing."""
    if wanted is None:
        return found is None or found != found
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=0, abs_tol=1e-6)
    return found == wanted


@pytest.mark.parametrize(("folder", "name"), ASKED)
def test_prompts_and_tiles(folder, name):
    table, recorded = opened(folder, name), read(folder, "prompts", f"{name}.json")
    index = read(folder, "index.json")[name]
    assert (len(table.table.rows), table.table.dropped) == (index["kept"], index["rows"] - index["kept"])
    assert table.suite.kind == recorded["type"]
    for mode, asked in recorded["modes"].items():
        found = {line["index"]: line for line in table.prompts(mode)}
        for number, wanted in asked["rows"].items():
            line = found[number]
            assert line["question"] == wanted["question"], (mode, number)
            assert line["tiles"] == wanted["num_patches_list"], (mode, number)
            assert (line["system"], line["generation"]) == (asked["system"], asked["generation"])


@pytest.mark.parametrize("folder", COUNTS)
def test_all_that_is_recorded_is_counted(folder):
    index, scored = read(folder, "index.json"), {path.stem for path in (folder / "scores").iterdir()}
    modes = [read(folder, "prompts", f"{name}.json")["modes"] for name in index]
    prompts = sum(len(asked["rows"]) for each in modes for asked in each.values())
    assert (prompts, len(scored - SHOWN.keys()), sum(each["rows"] for each in index.values())) == COUNTS[folder]


def by_name(score):
    """Rows of a table in the order of their names: the official code draws the order of splits."""
    return sorted(score, key=lambda row: str(next(iter(row.values())))) if isinstance(score, list) else score


def judge_of(folder, name):
    """The recorded replies, by the mark that a question has; None where the official code had no judge."""
    if not (folder / "data" / f"{name}.replies.json").exists():
        return None
    replies = read(folder, "data", f"{name}.replies.json")
    marks = {row.index: MARK.findall(row.cells["question"])[0] for row in opened(folder, name).table.rows}
    given = {marks[index]: [reply] if isinstance(reply, str) else reply[::-1] for index, reply in replies.items()}

    def judge(prompt, temperature=0.0):
        left = given[MARK.findall(prompt)[0]]
        return left.pop() if len(left) > 1 else left[0]  # asked again, it says the same

    return judge


def check_scores(folder, name):
    """Official table and hits; the count of questions."""
    table, recorded = opened(folder, name), read(folder, "scores", f"{name}.json")
    answers = table.predicted(read(folder, "data", f"{name}.predictions.json"), {})
    found = table.suite.rule(table.suite, answers, judge_of(folder, name))
    assert same(by_name(found.score), by_name(recorded["score"])), found.score
    rows = {row["index"]: row for row in found.rows}
    for number, wanted in recorded["per_row"].items():
        wanted = wanted if isinstance(wanted, dict) else {"hit" if "hit" in rows[number] else "score": wanted}
        for field, value in wanted.items():
            assert same(rows[number][field], value), (number, field, rows[number], value)
    assert not recorded["per_row"] or rows.keys() == recorded["per_row"].keys()
    low, high = found.interval or mean_interval(row.get("score", row.get("hit")) for row in found.rows)
    assert low <= found.headline <= high and low < high
    return len(rows)


@pytest.mark.parametrize(("folder", "name"), [(f, name) for f, name in ASKED if (f / f"scores/{name}.json").exists()])
def test_scores_and_hits(folder, name):
    check_scores(folder, name)


@pytest.mark.parametrize("name", SHOWN)
def test_videos(name):
    folder, count = SHOWN[name]
    recorded = read(folder, "prompts", f"{name}.json")
    found = {line["index"]: line for line in opened(folder, name).prompts("default")}
    for number, wanted in recorded["rows"].items():
        assert found[number]["question"] == wanted["question"], number
        assert found[number]["tiles"] == wanted["num_patches_list"] == [1] * FRAMES
    assert check_scores(folder, name) == count
