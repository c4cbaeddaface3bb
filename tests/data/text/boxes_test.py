"""Boxes and clicks: recorded RefCOCO and ScreenSpot rows, every form that they are written in, pixels and back."""

import base64
import csv
import io
import json
import re
import time

import pytest
from PIL import Image

from internvl_jax.data.text import boxes
from internvl_jax.data.text.boxes import Action


def table(golden, name):
    """Rows of a recorded data set with what was predicted, and the official scores."""
    folder = golden / "eval_image"
    with open(folder / f"data/{name}.tsv", newline="") as file:
        rows = [*csv.DictReader(file, delimiter="\t")]
    predictions = json.loads((folder / f"data/{name}.predictions.json").read_text())
    return rows, predictions, json.loads((folder / f"scores/{name}.json").read_text())


def test_boxes_of_refcoco(golden):
    """Tags, brackets, fractions, swapped corners, and no box: all 40 rows, as VLMEvalKit reads and scores them."""
    rows, predictions, official = table(golden, "RefCOCO")
    compared = 0
    for row, (name, prediction) in zip(rows, predictions.items(), strict=True):
        recorded, found = official["per_row"][name], boxes.parse_regions(prediction)
        assert (not found) == (recorded["pred_bbox"] is None)
        overlap = 0.0
        if found:
            corners = found[0].pixels(int(row["width"]), int(row["height"]))
            assert corners == pytest.approx(json.loads(recorded["pred_bbox"]), abs=1e-5)
            overlap = boxes.iou(corners, tuple(float(row[f"bbox_{key}"]) for key in ("x1", "y1", "x2", "y2")))
        assert overlap == pytest.approx(recorded["iou"], abs=1e-9) and (overlap >= 0.5) == bool(recorded["hit"])
        compared += 1
    assert compared == 40


def test_clicks_of_screenspot(golden):
    """The 22 rows in the form that is asked for hit as officially; the others, calls without a blank and boxes that
    the wrapper was not there to turn into clicks, are read here and are no clicks there."""
    rows, predictions, official = table(golden, "ScreenSpot_Mobile")
    hits, asked = {"text": 0, "icon": 0}, 0
    for row in rows:
        prediction = predictions[row["index"]]
        size = Image.open(io.BytesIO(base64.b64decode(row["image"]))).size
        x, y, wide, high = json.loads(row["bbox"])
        (action,) = boxes.parse_actions(prediction)
        hit = boxes.is_inside(action.pixel(*size), (x, y, x + wide - 1, y + high - 1))
        if re.search(r"x=[\d.]+, y=", prediction):
            hits[row["data_type"]] += hit
            asked += 1
        else:
            assert hit  # made to
    scores = official["score"]
    assert {kind: 100 * number / 16 for kind, number in hits.items()} == {
        "text": scores["Text_Accuracy"],
        "icon": scores["Icon_Accuracy"],
    }
    assert (asked, len(rows)) == (22, 32)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<ref>red cup</ref><box>[[10, 20, 300, 400]]</box>", [("red cup", (10, 20, 300, 400))]),
        ("<ref>cup</ref><box>[[1,2,3,4], [5,6,7,8]]</box>", [("cup", (1, 2, 3, 4)), ("cup", (5, 6, 7, 8))]),
        (
            "<ref>a</ref><box>[[1, 2, 3, 4]]</box> and <ref>b</ref><box>[[5, 6, 7, 8]]</box>",
            [("a", (1, 2, 3, 4)), ("b", (5, 6, 7, 8))],
        ),
        # Tags are control tokens, which decoding drops.
        ("the dog[[1, 2, 3, 4], [5, 6, 7, 8]]\nthe cat[[9, 9, 10, 10]]", None),
        ("It is at [[10, 20, 30, 40]].", [("", (10, 20, 30, 40))]),
        ("[10,20,30,40]", [("", (10, 20, 30, 40))]),
        ("[10 20 30 40]", [("", (10, 20, 30, 40))]),
        ("(10, 20, 30, 40)", [("", (10, 20, 30, 40))]),
        ("[[900, 800, 100, 200]]", [("", (100, 200, 900, 800))]),
        ("[1e2, 2e2, 3e2, 4e2]", [("", (100, 200, 300, 400))]),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cup"}]\n```', [("cup", (1, 2, 3, 4))]),
        ('{"label": "a", "bbox_2d": [1,2,3,4]}, {"bbox_2d": [5,6,7,8]}', [("a", (1, 2, 3, 4)), ("", (5, 6, 7, 8))]),
        ("猫[[1, 2, 3, 4]]", [("猫", (1, 2, 3, 4))]),
        ("[[1, 2, 3]] and [1, 2, 3, 4, 5]", []),
        ("no box", []),
        ("", []),
    ],
)
def test_forms_of_boxes(text, found):
    if found is None:
        found = [("the dog", (1, 2, 3, 4)), ("the dog", (5, 6, 7, 8)), ("the cat", (9, 9, 10, 10))]
    assert [(region.label, region.corners) for region in boxes.parse_regions(text)] == found


@pytest.mark.parametrize(
    ("text", "pixels"),
    [
        ("[[0.1, 0.2, 0.5, 0.6]]", (20, 20, 100, 60)),
        ("[[100, 200, 500, 600]]", (20, 20, 100, 60)),
        ("[[20, 20, 1200, 60]]", (20, 20, 200, 60)),
        ("[[-5, 10, 1000, 2000]]", (0, 10, 200, 100)),
        ("[[1.2, 0.3, 1.4, 0.9]]", (200, 30, 200, 90)),
        ("[[0, 0, 1, 1], [400, 400, 500, 500]]", (0, 0, 0.2, 0.1)),
    ],
)
def test_one_scale_for_an_answer(text, pixels):
    assert boxes.parse_regions(text)[0].pixels(200, 100) == pytest.approx(pixels)


@pytest.mark.parametrize(
    ("text", "actions"),
    [
        ("pyautogui.click(x=0.5, y=0.25)", [Action("click", (0.5, 0.25), "fractions")]),
        ("Action: click(x=120,y=33.5)", [Action("click", (120, 33.5), "pixels")]),
        ("pyautogui.doubleClick(300, 200)", [Action("doubleClick", (300, 200), "pixels")]),
        ("x=0.1, y=0.9", [Action("click", (0.1, 0.9), "fractions")]),
        ("[[500, 250]]", [Action("click", (500, 250), "thousandths")]),
        ("<box>[[100, 200, 300, 400]]</box>", [Action("click", (200, 300), "thousandths")]),
        (
            "pyautogui.moveTo(1, 2)\npyautogui.write('hi (you)', interval=0.1)\npyautogui.hotkey('ctrl', 'c')",
            [
                Action("moveTo", (1, 2), "pixels"),
                Action("write", None, "pixels", ("hi (you)",)),
                Action("hotkey", None, "pixels", ("ctrl", "c")),
            ],
        ),
        ("pyautogui.scroll(-3)", [Action("scroll", None, "pixels", ("-3",))]),
        ("os.system('rm') and print(1, 2)", []),
        ("nothing", []),
    ],
)
def test_forms_of_actions(text, actions):
    assert boxes.parse_actions(text) == actions


def test_a_box_written_and_read_is_the_same():
    corners = (13.0, 40.0, 127.0, 96.0)
    text = boxes.write_box("a cup", [boxes.thousandths(corners, 200, 100)])
    assert text == "<ref>a cup</ref><box>[[65, 400, 635, 960]]</box>"
    (region,) = boxes.parse_regions(text)
    assert region.label == "a cup" and region.pixels(200, 100) == pytest.approx(corners)
    assert boxes.thousandths((-5, -5, 300, 300), 200, 100) == (0, 0, 1000, 1000)


def test_overlap():
    assert boxes.iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert boxes.iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0 == boxes.iou((0, 0, 0, 0), (0, 0, 0, 0))
    assert boxes.iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert boxes.is_inside((1, 2), (1, 1, 3, 2)) and not boxes.is_inside((1, 2.1), (1, 1, 3, 2))


@pytest.mark.parametrize(
    "text", ["[1, " * 20000, "<ref>" * 20000, "a(" * 20000, "[[" + " " * 50000, "[" + "1" * 50000, '{"label": ' * 9000]
)
def test_long_nonsense_takes_no_time(text):
    start = time.process_time()
    assert boxes.parse_regions(text) == boxes.parse_actions(text) == []
    assert time.process_time() - start < 2
    assert len(boxes.parse_regions("[1, 2, 3, 4]" * 3000)) == 1000


def test_numbers_beyond_any_float_are_no_box():
    """Their middle would be no number."""
    assert boxes.parse_regions("[-1e999, 1, 1e999, 2]") == []
    assert boxes.parse_actions("[-1e999, 1, 1e999, 2]") == []
    (region,) = boxes.parse_regions("[1e999, 1, 2, 3] [[1, 2, 3, 4]]")
    assert region.scale == "thousandths" and region.corners == (1, 2, 3, 4)
