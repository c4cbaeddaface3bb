"""The demo's files: in the released formats, from training pictures alone, the same each time."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from demo import easy_vqa, training_data
from demo.recipe import RECIPE
from internvl_jax.data import ImageConfig, Processor, Tokenizer, get_template
from internvl_jax.data.rows.pipeline import Pipeline, PipelineConfig
from internvl_jax.errors import InputError
from internvl_jax.files import MARK

IMAGES = 7
SMALL = dataclasses.replace(RECIPE, variants=3, sft_variants=2, turns=2)


@pytest.fixture
def few(monkeypatch):
    """Only the first images, and nothing of the test split."""
    questions, paths = easy_vqa.questions, easy_vqa.image_paths

    def train_only(split):
        assert split == "train", "training data must not be made of test images"

    def few_questions(split):
        train_only(split)
        return [question for question in questions(split) if question.image < IMAGES]

    def few_paths(split):
        train_only(split)
        return {number: path for number, path in paths(split).items() if number < IMAGES}

    monkeypatch.setattr(easy_vqa, "questions", few_questions)
    monkeypatch.setattr(easy_vqa, "image_paths", few_paths)


@pytest.fixture
def folder(few, tmp_path) -> pathlib.Path:
    training_data.write(tmp_path / "data", SMALL, lambda: None)
    return tmp_path / "data"


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_captions_say_what_the_pictures_show(folder):
    captions = lines(folder / "cpt.jsonl")
    assert {entry["image"].split("/")[0] for entry in captions} == {"0", "1", "2"}
    assert 3 * 4 < len(captions) <= 3 * IMAGES
    for entry in captions:
        picture = np.asarray(Image.open(folder / "images" / entry["image"]))
        (turn,) = entry["conversations"]
        text, shape = turn["value"].rsplit(" ", 1)
        assert turn["from"] == "pretrain" and shape in easy_vqa.SHAPES
        assert text == f"<image>\na {easy_vqa.main_colour(picture)}"


def test_answers_are_true_of_the_pictures(folder):
    conversations = lines(folder / "sft.jsonl")
    assert len(conversations) == 2 * IMAGES
    for entry in conversations:
        turns = entry["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * 2
        assert turns[0]["value"].startswith("<image>\n") and "<image>" not in turns[2]["value"]
        colour = easy_vqa.main_colour(np.asarray(Image.open(folder / "images" / entry["image"])))
        for asked, said in zip(turns[::2], turns[1::2]):
            question = easy_vqa.EasyQuestion(0, asked["value"].removeprefix("<image>\n"), said["value"])
            assert easy_vqa.facts([question]).colour in (None, colour)
            named = [name for name in easy_vqa.COLOURS if name in question.text.split()]
            if easy_vqa.kind(question) == "yes/no color":
                negated = not {"no", "not"}.isdisjoint(question.text.split())
                assert (said["value"] == "yes") == ((named[0] == colour) != negated)


def test_true_and_false_claims_are_chosen_equally_often():
    """Of one true and seven false claims about colour, the true one comes first in half of the draws."""
    about = [easy_vqa.EasyQuestion(0, f"is there a {name} shape?", "no") for name in easy_vqa.COLOURS]
    about[3] = about[3]._replace(answer="yes")
    rng = np.random.default_rng(0)
    draws = [training_data.choose(about, 1, rng) for _ in range(1000)]
    assert sum(chosen == [about[3]] for chosen in draws) == pytest.approx(500, abs=60)
    assert sorted(training_data.choose(about, 99, rng)) == sorted(about)
    assert len(training_data.choose(about, 5, rng)) == 5


@pytest.mark.parametrize("stage", ["cpt", "sft"])
def test_the_pipeline_packs_them(folder, stage):
    """Rows are full of pictures; supervised are a line break and a caption, or answers, each with its stop."""
    tokenizer = Tokenizer.load(folder / "tokenizer")
    budget = SMALL.cpt if stage == "cpt" else SMALL.sft
    image = ImageConfig(64, 16, 1, 1, thumbnail=False, apply_exif=False, max_pixels=64 * 64)
    config = PipelineConfig(
        meta=str(folder / f"{stage}.json"),
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
    assert batch.segments_BT.max() == batch.tile_mask_G.sum() == budget.tile_budget
    said = tokenizer.decode(batch.targets_BT[batch.weights_BT > 0], skip_special=False)
    if stage == "cpt":
        assert re.fullmatch(r"(\na [a-z]+ (circle|rectangle|triangle)){2}", said)
    else:
        assert re.fullmatch(r"([a-z]+<\|im_end\|>){4}", said)


def test_same_files_each_time(folder, tmp_path):
    (tmp_path / "again.partial").mkdir()
    for name in ("left by a kill", MARK):
        (tmp_path / "again.partial" / name).touch()
    training_data.write(tmp_path / "again", SMALL, lambda: None)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    for name in names:
        ours, theirs = (folder / name).read_bytes(), (tmp_path / "again" / name).read_bytes()
        assert ours.replace(b"/data/", b"/again/") == theirs, name


def test_what_is_there_stays_unless_it_is_of_another_recipe(folder):
    before = (folder / "cpt.jsonl").stat().st_mtime_ns
    training_data.write(folder, SMALL, lambda: pytest.fail("wrote again"))
    assert (folder / "cpt.jsonl").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another recipe"):
        training_data.write(folder, dataclasses.replace(SMALL, seed=1), lambda: None)


def test_vocabulary(folder):
    """Every answer is one token, as is every word of a question; the system text costs little; the model has room."""
    tokenizer = Tokenizer.load(folder / "tokenizer")
    assert tokenizer.vocab_size <= RECIPE.vocab
    asked = easy_vqa.questions("train")
    for question in asked:
        assert len(tokenizer.encode(question.answer)) == 1
        assert len(tokenizer.encode(question.text)) == len(question.text.split()) + 1
    assert len(tokenizer.encode(get_template("internvl2_5").default_system)) < 20
