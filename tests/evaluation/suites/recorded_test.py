"""Prompts, tiles, scores and hits of 32 data sets, as the official evaluation code gave them for the same tables."""

import json
import math
import pathlib

import pytest

from internvl_jax.evaluation.suites import suite_file, suite_list

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
FOLDER = GOLDEN / "eval_image"
NAMES = sorted(json.loads((FOLDER / "index.json").read_text()))
PROMPTS, SCORED, ROWS = 1_120, 28, 882  # all that is recorded: prompts in three modes, sets with scores, rows


def read(*path):
    return json.loads(FOLDER.joinpath(*path).read_text())


def opened(name):
    return suite_file.open_suite(suite_list.get_suite(name), FOLDER / "data")


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


@pytest.mark.parametrize("name", NAMES)
def test_prompts_and_tiles(name):
    table, recorded = opened(name), read("prompts", f"{name}.json")
    index = read("index.json")[name]
    assert (len(table.table.rows), table.table.dropped) == (index["kept"], index["rows"] - index["kept"])
    assert table.suite.kind == recorded["type"]
    for mode, asked in recorded["modes"].items():
        found = {line["index"]: line for line in table.prompts(mode)}
        for number, wanted in asked["rows"].items():
            line = found[number]
            assert line["question"] == wanted["question"], (mode, number)
            assert line["tiles"] == wanted["num_patches_list"], (mode, number)
            assert (line["system"], line["generation"]) == (asked["system"], asked["generation"])


def test_all_prompts_are_counted():
    modes = [read("prompts", f"{name}.json")["modes"] for name in NAMES]
    assert sum(len(asked["rows"]) for each in modes for asked in each.values()) == PROMPTS
    assert sum(each["rows"] for each in read("index.json").values()) == ROWS
    assert len([*(FOLDER / "scores").iterdir()]) == SCORED


def by_name(score):
    """Rows of a table in the order of their names: the official code draws the order of splits."""
    return sorted(score, key=lambda row: str(next(iter(row.values())))) if isinstance(score, list) else score


@pytest.mark.parametrize("name", [name for name in NAMES if (FOLDER / "scores" / f"{name}.json").exists()])
def test_scores_and_hits(name):
    table, recorded = opened(name), read("scores", f"{name}.json")
    answers = table.predicted(read("data", f"{name}.predictions.json"), {})
    found = table.suite.rule(table.suite, answers, None)
    assert same(by_name(found.score), by_name(recorded["score"])), found.score
    rows = {row["index"]: row for row in found.rows}
    for number, wanted in recorded["per_row"].items():
        wanted = wanted if isinstance(wanted, dict) else {"hit" if "hit" in rows[number] else "score": wanted}
        for field, value in wanted.items():
            assert same(rows[number][field], value), (number, field, rows[number], value)
    assert not recorded["per_row"] or rows.keys() == recorded["per_row"].keys()


VIDEOS = GOLDEN / "eval_video"
FRAMES = 8


@pytest.mark.parametrize(("name", "count"), [("MVBench", 36), ("Video-MME", 48), ("VSI-Bench", 50)])
def test_videos(name, count):
    suite = suite_list.get_suite(name)
    table = suite_file.open_suite(suite, VIDEOS / "data", frames=FRAMES)
    recorded = json.loads((VIDEOS / "prompts" / f"{name}.json").read_text())
    found = {line["index"]: line for line in table.prompts("default")}
    for number, wanted in recorded["rows"].items():
        assert found[number]["question"] == wanted["question"], number
        assert found[number]["tiles"] == wanted["num_patches_list"] == [1] * FRAMES
    scores = json.loads((VIDEOS / "scores" / f"{name}.json").read_text())
    answers = table.predicted(json.loads((VIDEOS / "data" / f"{name}.predictions.json").read_text()), {})
    rated = suite.rule(suite, answers, None)
    assert same(rated.score, scores["score"])
    assert len(rated.rows) == len(scores["per_row"]) == count
    for row in rated.rows:
        assert same(row["score" if "score" in row else "hit"], scores["per_row"][row["index"]]), row
