"""The whole cascade, on a handful of boards and for a few steps; started again, nothing is redone."""

import base64
import contextlib
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from cascade import evaluation, report, run, vico
from cascade.evaluation import Answerer
from cascade.recipe import RECIPE, Training
from cascade.vico import Point
from internvl_jax.errors import InputError
from internvl_jax.grading import Score
from internvl_jax.inference.compression import Decided, Thresholds
from internvl_jax.inference.engine.buckets import Ladders
from internvl_jax.inference.load import load
from internvl_jax.training import MpoConfig
from internvl_jax.training.run import hooks

MODEL = dataclasses.replace(
    RECIPE.model,
    vision=dataclasses.replace(RECIPE.model.vision, width=24, layers=1, mlp=48),
    text=dataclasses.replace(RECIPE.model.text, width=24, layers=1, mlp=32),
)
PARITY = f"{__name__}:parity"


def brief(stage: Training, **fields) -> Training:
    """The stage in two steps of few rows; CPT and SFT share a program."""
    return dataclasses.replace(stage, **{"steps": 2, "token_budget": 128, "tile_budget": 6} | fields)


SMALL = dataclasses.replace(
    RECIPE,
    model=MODEL,
    data=dataclasses.replace(RECIPE.data, boxes=40, boards=20, reading=5, sums=9, chains=12, rl=8, dev=6, test=6),
    cpt=brief(RECIPE.cpt),
    sft=dataclasses.replace(brief(RECIPE.cpt), files=("chains",)),
    pairs=dataclasses.replace(RECIPE.pairs, samples=32, batch_size=256, reward=PARITY),
    mpo=brief(RECIPE.mpo, settings=MpoConfig(pairs=2), rows=8, micro_batches=1, token_budget=512),
    gspo=brief(
        RECIPE.gspo,
        settings=dataclasses.replace(
            RECIPE.gspo.settings,
            prompts=4,
            group=2,
            mini_batch=2,
            reward=PARITY,
            lowest_accuracy=0.0,
            highest_accuracy=1.0,
        ),
        rows=8,
        micro_batches=1,
    ),
    consistency=brief(RECIPE.consistency, token_budget=224, tile_budget=12),
    router=brief(RECIPE.router, token_budget=600),
    sweep=dataclasses.replace(RECIPE.sweep, absolute=(0.0, 0.5), relative=(0.0, 1.0)),
)


def parity(response: str, answer: str) -> Score:
    """A reward that the nonsense of an untrained model gets half of the time."""
    right = float(len(response) % 2)
    return Score(right, right, 1.0)


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "READINGS", 8)
        patch.setattr(evaluation, "ROWS", 8)
        patch.setattr(evaluation, "LADDERS", Ladders(rows=(8,), prompts=(96,), tiles=(48,), slots=(144,)))
        yield


@pytest.fixture(scope="module")
def whole(_small, tmp_path_factory):
    """Folder, summary and output of a run of all parts."""
    folder, printed = tmp_path_factory.mktemp("cascade"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        summary = run.run(str(folder), recipe=SMALL)
    return folder, summary, printed.getvalue()


def test_from_nothing_to_report(whole, monkeypatch, capsys):
    folder, summary, printed = whole
    assert set(summary) == {"accuracy", "visual_tokens", "n", "seconds"} and summary["n"] == 6
    assert set(summary["accuracy"]) == {"sft", "mpo", "gspo", "gspo_only", "flash", "random_router"}
    assert summary["visual_tokens"]["base"] == 24 >= summary["visual_tokens"]["flash"]
    assert "large digits" in printed and "| SFT, MPO, GSPO " in printed
    assert "with 0.0% saved" in printed  # the Flash model, nothing compressed
    said = evaluation.read_answers(folder / "answers" / "sft.jsonl")
    assert [one.asked for one in said] == evaluation.read_questions(folder / "data" / "test.jsonl")
    assert all(0 < one.tokens <= evaluation.ANSWER_TOKENS for one in said)

    # The cascade's GSPO and the one without MPO differ in where they start, and in nothing else.
    ours, others = (json.loads((folder / name / "run.json").read_text()) for name in ("gspo", "gspo_only"))
    starts = [settings["run"].pop("init_from") for settings in (ours, others)]
    assert starts == [str(folder / "mpo"), str(folder / "sft")] and ours == others
    rollouts = [folder / name / "rollouts" / "000000.jsonl" for name in ("gspo", "gspo_only")]
    prompts = [[json.loads(line)["prompt"] for line in path.read_text().splitlines()] for path in rollouts]
    assert prompts[0] == prompts[1] and len(set(prompts[0])) == 4

    # As many tiles, but others; a page that needs no other file.
    answers = {name: evaluation.read_answers(folder / "answers" / f"{name}.jsonl") for name in report.MODELS}
    flash, random = answers["flash"], answers["random_router"]
    assert [one.image_tokens for one in flash] == [one.image_tokens for one in random]
    page = (folder / "report" / "index.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    assert [Image.open(io.BytesIO(base64.b64decode(each))).format for each in pictures] == ["PNG"] * 4
    assert not re.search(r'(src|href)="(?!data:)', page)

    # Started again, whole or in parts, it takes everything as it is.
    steps = {name: hooks.read_metrics(folder / name) for name in ("cpt", "sft", "mpo", "gspo", "router")}
    monkeypatch.setattr(evaluation, "load", lambda *_, **__: pytest.fail("asked again"))
    monkeypatch.setattr(vico, "load", lambda *_, **__: pytest.fail("asked again"))
    assert run.run(str(folder), recipe=SMALL) == summary
    assert capsys.readouterr().out == printed
    assert run.run(str(folder), parts=["test"], recipe=SMALL) is None
    assert steps == {name: hooks.read_metrics(folder / name) for name in steps}
    with pytest.raises(InputError, match="was begun with another recipe"):
        run.run(str(folder), parts=["report"], recipe=dataclasses.replace(SMALL, seed=1))


def test_exploring(whole):
    """Samples of a question differ, and are the same whoever stands beside them."""
    folder, *_ = whole
    answerer = Answerer(*load(folder / "sft", dtype="float32"))
    asked = evaluation.read_questions(folder / "data" / "dev.jsonl")[:2]
    sampled = answerer.ask(asked, temperature=1.0, samples=3)
    assert len(sampled) == 6 and len({one.text for one in sampled[:3]}) == 3
    assert answerer.ask(asked[:1], temperature=1.0, samples=3) == sampled[:3]
    assert "boards read rightly: 0.00%" in run.explore(answerer, folder / "data", 1, SMALL)


def test_the_most_accurate_threshold_that_saves_enough_is_chosen():
    point = lambda threshold, saved, accuracy: Point("absolute", threshold, 0, saved, accuracy, 0)
    points = [point(0.1, 0.6, 0.7), point(0.2, 0.5, 0.8), point(0.3, 0.55, 0.8), point(0.4, 0.2, 0.9)]
    assert vico.choose(points, 0.46).threshold == 0.3
    assert vico.choose(points, 0.58).threshold == 0.1
    assert vico.choose(points, 0.9).threshold == 0.1  # none saves so much
    assert points[0].thresholds == Thresholds(0.0, 0.1)
    assert points[0]._replace(kind="relative").thresholds == Thresholds(0.1, 0.0)


def test_random_decisions_compress_as_many_tiles():
    compressed = [np.array([True, False, True, False, False]), np.zeros(3, bool)] * 40
    decided = vico.at_random(compressed, seed=0)
    assert [sum(one.compress) for one in decided] == [2, 0] * 40
    assert len({one.compress for one in decided[::2]}) > 5
    more = vico.at_random([np.array([True, True, True, False, False]), np.zeros(3, bool)] * 40, seed=0)
    assert all(set(np.flatnonzero(a.compress)) <= set(np.flatnonzero(b.compress)) for a, b in zip(decided, more))
    assert vico.at_random(compressed, seed=0) == decided != vico.at_random(compressed, seed=1)
    assert isinstance(decided[0], Decided)
