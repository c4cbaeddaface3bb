"""The cascade's files: in the released formats, each board from its own stream, the same each time."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from cascade import evaluation, questions, training_data
from cascade.recipe import RECIPE
from internvl_jax.data import ImageConfig, Processor, Tokenizer, get_template
from internvl_jax.data.rows.pipeline import Pipeline, PipelineConfig
from internvl_jax.files import MARK

SMALL = dataclasses.replace(RECIPE.data, boxes=29, boards=17, reading=5, sums=9, chains=13, rl=11, dev=6, test=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("cascade") / "data"
    training_data.write(folder, SMALL, lambda: None)
    return folder


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_entries_are_true_of_their_boards(folder):
    for name in training_data.FILES:
        entries = lines(folder / f"{name}.jsonl")
        assert len(entries) == getattr(SMALL, name)
        for number, entry in enumerate(entries):
            board = training_data.make(name, number, SMALL.seed)
            stored = np.asarray(Image.open(folder / "images" / name / f"{number}.png"))
            np.testing.assert_array_equal(stored, board.picture_HW)
            if name in ("boxes", "boards"):
                text = f"<image>\n{''.join(map(str, board.digits))}."
                assert entry["conversations"] == [{"from": "pretrain", "value": text}]
                continue
            kinds = (questions.READ,) if name == "reading" else questions.KINDS
            asked = [questions.ask(kind, board.digits) for kind in kinds]
            if name in ("reading", "chains"):
                human, gpt = (turn["value"] for turn in entry["conversations"])
                assert (human, gpt) in [(f"<image>\n{one.text}", one.response) for one in asked]
            else:
                assert entry.keys() == {"image", "question", "answer"}
                assert (entry["question"], entry["answer"]) in [(one.text, one.answer) for one in asked]


def test_sums_are_true(folder):
    texts = [entry["conversations"][0]["value"] for entry in lines(folder / "sums.jsonl")]
    assert len(texts) == 9
    for text in (*texts, *training_data.sums(2000, seed=1)):
        total, more, result = map(int, re.fullmatch(r"(\d+)\+(\d)=(\d+)\.", text).groups())
        assert total + more == result <= 54


def test_no_two_files_share_boards():
    pictures = {training_data.make(name, 0, 0).picture_HW.tobytes() for name in ("chains", "rl", "dev", "test")}
    assert len(pictures) == 4
    assert training_data.make("chains", 0, 1).boxes != training_data.make("chains", 0, 0).boxes


def test_prompt_files_can_be_asked(folder):
    asked = evaluation.read_questions(folder / "test.jsonl")
    assert [one.kind for one in asked] == list(questions.KINDS)
    assert all(one.image.exists() for one in asked)


@pytest.mark.parametrize("stage", ["cpt", "sft"])
def test_the_pipeline_packs_them(folder, tmp_path, stage):
    """Supervised are transcripts with the line break before them, or responses with their stop."""
    tokenizer = Tokenizer.load(folder / "tokenizer")
    budget = getattr(RECIPE, stage)
    image = ImageConfig(32, 4, 1, 6, thumbnail=False, apply_exif=False, max_pixels=96 * 96)
    (tmp_path / "meta.json").write_text(json.dumps(training_data.meta(folder, budget.files)))
    config = PipelineConfig(
        meta=str(tmp_path / "meta.json"),
        kind="conversations",
        token_budget=budget.token_budget,
        tile_budget=budget.tile_budget,
        max_open=20,
        pack=True,
        weighting="square",
        seed=0,
        over_long="error",
        max_skipped=0,
        cache_dir=None,
        workers=0,
        threads=0,
    )
    batch, skipped = Pipeline(config, Processor(image, tokenizer, get_template("internvl2_5"))).row(0)
    assert not skipped
    assert batch.segments_BT.max() > 2 and batch.tile_mask_G.sum() > 10
    said = tokenizer.decode(batch.targets_BT[batch.weights_BT > 0], skip_special=False)
    if stage == "cpt":
        assert re.fullmatch(r"((\n\d*\.)|(\d*\+\d=\d+\.)|(<think>\d+</think>\\boxed\{\d+\}<\|im_end\|>))+", said)
    else:
        assert re.fullmatch(r"(<think>[0-9+:=-]+</think>\\boxed\{\d+\}<\|im_end\|>)+", said)


def test_same_files_each_time(folder, tmp_path):
    (tmp_path / "data.partial").mkdir()
    for name in ("left by a kill", MARK):
        (tmp_path / "data.partial" / name).touch()
    training_data.write(tmp_path / "data", SMALL, lambda: None)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(p.relative_to(tmp_path / "data") for p in (tmp_path / "data").rglob("*") if p.is_file())
    for name in names:
        ours, theirs = (folder / name).read_bytes(), (tmp_path / "data" / name).read_bytes()
        assert ours.replace(str(folder).encode(), str(tmp_path / "data").encode()) == theirs, name


def test_what_is_there_stays(folder):
    before = (folder / "chains.jsonl").stat().st_mtime_ns
    training_data.write(folder, SMALL, lambda: pytest.fail("wrote again"))
    assert (folder / "chains.jsonl").stat().st_mtime_ns == before


def test_samples_are_short(folder):
    """System text and question take a few tokens, and the longest response fits what an answer may take."""
    tokenizer = Tokenizer.load(folder / "tokenizer")
    assert tokenizer.vocab_size <= RECIPE.model.text.vocab
    assert len(tokenizer.encode(get_template("internvl2_5").default_system)) < 12
    longest = questions.ask("sum", (9, 8, 9, 8, 9, 8))
    assert len(tokenizer.encode(longest.response)) < evaluation.ANSWER_TOKENS
    for kind in questions.KINDS.values():
        assert len(tokenizer.encode(kind.text)) <= 10
