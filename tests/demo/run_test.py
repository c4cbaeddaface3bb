"""The demo end to end, on a handful of images and for a few steps: what it writes, prints and takes up again."""

import dataclasses
import json

import pytest

from demo import easy_vqa, run
from demo.recipe import RECIPE
from demo.report import Answered

SMALL = dataclasses.replace(
    RECIPE,
    variants=2,
    sft_variants=1,
    cpt=dataclasses.replace(RECIPE.cpt, steps=3),
    sft=dataclasses.replace(RECIPE.sft, steps=2),
)


def test_from_nothing_to_answers(tmp_path, monkeypatch, capfd):
    questions, paths = easy_vqa.questions, easy_vqa.image_paths
    monkeypatch.setattr(easy_vqa, "questions", lambda split: [q for q in questions(split) if q.image < 5])
    monkeypatch.setattr(easy_vqa, "image_paths", lambda split: {i: p for i, p in paths(split).items() if i < 5})

    result = run.run(str(tmp_path), SMALL)
    asked = [question for question in questions("test") if question.image < 5]
    assert result["n"] == len(asked) and 0 <= result["accuracy"] <= 1 and result["train_seconds"] > 0
    answers = [json.loads(line) for line in (tmp_path / "report" / "answers.jsonl").read_text().splitlines()]
    right = sum(answer["answer"] == answer["truth"] for answer in answers)
    assert result["accuracy"] == pytest.approx(right / len(asked), abs=1e-4)
    printed = capfd.readouterr().out
    assert "| all " in printed
    # launch.chat says the same as the batched answers.
    assert printed.strip().endswith(answers[0]["answer"])

    # Started again it trains nothing; what it says then has been seen above.
    recorded = [Answered(question, answer["answer"]) for question, answer in zip(asked, answers)]
    monkeypatch.setattr(run, "_answer", lambda workdir: recorded)
    monkeypatch.setattr(run, "_chat", lambda workdir, question: None)
    steps = [(tmp_path / stage / "metrics.jsonl").read_text() for stage in ("cpt", "sft")]
    assert run.run(str(tmp_path), SMALL) == result
    assert steps == [(tmp_path / stage / "metrics.jsonl").read_text() for stage in ("cpt", "sft")]
