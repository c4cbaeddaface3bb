"""The demo's report, from a few made-up answers."""

import json

import numpy as np
import pytest
from PIL import Image

from demo import easy_vqa, report
from demo.easy_vqa import EasyQuestion
from demo.report import Answered, DemoScore

TRAINING = [
    EasyQuestion(0, "what color is the shape?", "teal"),
    EasyQuestion(1, "what color is the circle?", "teal"),
    EasyQuestion(2, "what color is the circle?", "red"),
    EasyQuestion(3, "is there a circle?", "no"),
    EasyQuestion(4, "what shape is present?", "triangle"),
]
ANSWERED = [
    Answered(EasyQuestion(5, "what color is the shape?", "teal"), " teal\n"),
    Answered(EasyQuestion(5, "what color is the shape?", "red"), "teal"),
    Answered(EasyQuestion(6, "what color is the circle?", "blue"), "blue"),
    Answered(EasyQuestion(6, "is there a circle?", "yes"), "yes"),
    Answered(EasyQuestion(7, "is there a circle?", "no"), ""),
]


@pytest.fixture
def pictures(tmp_path):
    paths = {}
    for number in (5, 6, 7):
        paths[number] = tmp_path / f"{number}.png"
        Image.new("RGB", (13, 11), (30 * number, 0, 0)).save(paths[number])
    return paths


def test_scores():
    found = report.scores(ANSWERED, TRAINING)
    assert [score.kind for score in found] == ["what color", "yes/no shape", "all"]
    assert found == [
        DemoScore("what color", 3, pytest.approx(2 / 3), pytest.approx(1 / 3)),
        DemoScore("yes/no shape", 2, 0.5, 0.5),
        DemoScore("all", 5, pytest.approx(3 / 5), pytest.approx(2 / 5)),
    ]


def test_table_shows_every_score():
    text = report.table([DemoScore("what shape", 1234, 0.98765, 0.25)])
    assert text.splitlines()[-1].replace(" ", "") == "|whatshape|1234|98.77%|25.00%|"


def test_write(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(easy_vqa, "questions", lambda split: TRAINING if split == "train" else pytest.fail(split))
    monkeypatch.setattr(easy_vqa, "image_paths", lambda split: pictures)
    stages = {}
    for name in ("CPT", "SFT"):
        stages[name] = tmp_path / name
        stages[name].mkdir()
        lines = [{"step": step, "loss": 1 / step} for step in (10, 20, 30)]
        (stages[name] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path / "report"
    assert report.write(folder, stages, ANSWERED, seed=0)[-1].n == 5

    for name in ("loss.png", "examples.png"):
        pixels = np.asarray(Image.open(folder / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 400 and pixels.std() > 5
        assert f"]({name})" in (folder / "report.md").read_text()
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert answers[0] == {"image": 5, "question": "what color is the shape?", "answer": "teal", "truth": "teal"}
    assert len(answers) == 5


def test_contact_sheet_shows_each_picture(tmp_path, pictures):
    """Every picture is one flat colour: all three, and the two mistakes again in the last row, must appear."""
    report.contact_sheet(ANSWERED, pictures, tmp_path / "sheet.png", seed=0)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    rows = {number: np.flatnonzero(np.all(pixels == (30 * number, 0, 0), axis=2).any(axis=1)) for number in (5, 6, 7)}
    assert all(len(found) for found in rows.values())
    last_row = pixels.shape[0] * 3 // 4
    assert rows[5].max() > last_row and rows[7].min() > last_row
    assert rows[6].max() < last_row
