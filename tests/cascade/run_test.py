"""CPT, SFT and evaluation end to end, on a handful of boards and for a few steps; started again, nothing is redone."""

import dataclasses

import pytest

from cascade import evaluation, run
from cascade.evaluation import Answerer
from cascade.recipe import RECIPE
from internvl_jax.inference.buckets import Ladders
from internvl_jax.inference.load import load

MODEL = dataclasses.replace(
    RECIPE.model,
    vision=dataclasses.replace(RECIPE.model.vision, width=24, layers=1, mlp=48),
    text=dataclasses.replace(RECIPE.model.text, width=24, layers=1, mlp=32),
)
STAGE = dataclasses.replace(RECIPE.cpt, steps=2, token_budget=96, tile_budget=6)  # both stages share a program
SMALL = dataclasses.replace(
    RECIPE,
    model=MODEL,
    data=dataclasses.replace(
        RECIPE.data, boxes=40, boards=20, reading=5, sums=9, chains=12, mpo=1, gspo=1, dev=6, test=6
    ),
    cpt=STAGE,
    sft=STAGE,
)


def test_from_nothing_to_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "READINGS", 8)
    monkeypatch.setattr(evaluation, "ROWS", 8)
    monkeypatch.setattr(evaluation, "LADDERS", Ladders(rows=(8,), prompts=(96,), tiles=(48,), slots=(144,)))
    run.run(str(tmp_path), recipe=SMALL)
    printed = capsys.readouterr().out
    said = evaluation.read_answers(tmp_path / "answers" / "sft.jsonl")
    assert [one.asked for one in said] == evaluation.read_questions(tmp_path / "data" / "test.jsonl")
    assert all(0 < one.tokens <= evaluation.ANSWER_TOKENS for one in said)
    assert "large digits" in printed and evaluation.table(evaluation.score(said)) in printed

    # Samples of a question differ, and are the same whoever stands beside them.
    answerer = Answerer(*load(tmp_path / "sft", dtype="float32"))
    sampled = answerer.ask([one.asked for one in said[:2]], temperature=1.0, samples=3)
    assert len(sampled) == 6 and len({one.text for one in sampled[:3]}) == 3
    assert answerer.ask([said[0].asked], temperature=1.0, samples=3) == sampled[:3]
    assert "boards read rightly: 0.00%" in run.explore(answerer, tmp_path / "data", 1, SMALL)

    # Started again, whole or in parts, it takes everything as it is.
    steps = [(tmp_path / stage / "metrics.jsonl").read_text() for stage in ("cpt", "sft")]
    monkeypatch.setattr(run, "load", lambda *_, **__: pytest.fail("asked again"))
    run.run(str(tmp_path), recipe=SMALL)
    assert capsys.readouterr().out == printed
    run.run(str(tmp_path), parts=["test"], recipe=SMALL)
    assert printed.endswith(capsys.readouterr().out)
    assert steps == [(tmp_path / stage / "metrics.jsonl").read_text() for stage in ("cpt", "sft")]
