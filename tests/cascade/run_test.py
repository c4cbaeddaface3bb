"""CPT, SFT and evaluation end to end, on a handful of boards and for a few steps; started again, nothing is redone."""

import dataclasses

import pytest

from cascade import evaluation, run
from cascade.evaluation import Answerer
from cascade.recipe import RECIPE
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
    cpt_boxes=40,
    cpt_boards=20,
    cpt_reading=5,
    sft_chains=12,
    mpo_prompts=1,
    gspo_prompts=1,
    dev_questions=6,
    test_questions=6,
    cpt=STAGE,
    sft=STAGE,
)


def test_from_nothing_to_answers(tmp_path, monkeypatch):
    data = run.make_data(tmp_path, SMALL)
    pretrained, tuned = run.run_cpt(tmp_path, SMALL), run.run_sft(tmp_path, SMALL)
    said = run.evaluate(tuned, data / "dev.jsonl", tmp_path / "answers" / "sft.jsonl")
    assert [one.asked for one in said] == evaluation.read_questions(data / "dev.jsonl")
    assert all(0 < one.tokens <= evaluation.ANSWER_TOKENS for one in said)

    answerer = Answerer(*load(pretrained, dtype="float32"))
    shares = evaluation.reading(answerer, "dev", count=8, seed=0)
    assert shares.keys() == {"large digits", "small digits", "whole boards"}
    assert all(0 <= share <= 1 for share in shares.values())
    # Samples of a question differ, and are the same whoever stands beside them.
    sampled = answerer.ask([one.asked for one in said[:2]], temperature=1.0, samples=3)
    assert len(sampled) == 6 and len({one.text for one in sampled[:3]}) == 3
    assert answerer.ask([said[0].asked], temperature=1.0, samples=3) == sampled[:3]

    # Started again, it takes everything as it is.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl")}
    monkeypatch.setattr(run, "load", lambda *_, **__: pytest.fail("asked again"))
    assert run.make_data(tmp_path, SMALL) == data
    assert run.run_cpt(tmp_path, SMALL) == pretrained and run.run_sft(tmp_path, SMALL) == tuned
    assert run.evaluate(tuned, data / "dev.jsonl", tmp_path / "answers" / "sft.jsonl") == said
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl")}
    assert {path for path in before if before[path] != after[path]} <= {
        stage / "metrics.jsonl" for stage in (pretrained, tuned)
    }
