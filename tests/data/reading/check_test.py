"""check_data finds each kind of fault and all of them at once; sound data has no problems."""

import json

import numpy as np
import pytest

from internvl_jax.data.reading import check
from internvl_jax.data.rows import packing
from internvl_jax.errors import InputError

BUDGETS = packing.PackingConfig(token_budget=199, tile_budget=11, max_open=3)


def check_of(tiny, processor, budgets=BUDGETS, decode=False):
    return check.check(tiny.meta, processor, budgets, decode=decode, render=5)


def edit(tiny, name, line, **fields):
    path = tiny.folder / f"{name}.jsonl"
    records = [json.loads(text) for text in path.read_text().splitlines()]
    records[line - 1].update(fields)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("decode", [True, False])
def test_sound_data(tiny, processor, decode):
    report = check_of(tiny, processor, decode=decode)
    summary = report.summary()
    assert report.problems == [] and summary["samples"] == 23 and summary["tiles"] == 39
    assert summary["tokens"] == report.tokens_I.sum() and summary["longest"] == 94
    assert summary["token_fill"] == pytest.approx(summary["tokens"] / (summary["rows_per_epoch"] * 199), abs=1e-4)
    assert len(report.rendered) == 5


def test_every_problem_is_listed_with_its_line(tiny, processor):
    edit(tiny, "texts", 2, conversations=[])
    edit(tiny, "texts", 9, video="v.mp4")
    edit(tiny, "singles", 1, image="gone.png")
    edit(tiny, "singles", 4, width=500)
    edit(tiny, "pairs", 3, image=["p0.png"], width_list=[13], height_list=[17])
    edit(tiny, "pretrain", 1, conversations=[{"from": "pretrain", "value": ""}])
    tiny.entries["texts"]["length"] = 12
    tiny.entries["gone"] = {"root": "", "annotation": str(tiny.folder / "gone.jsonl")}
    tiny.write_meta()
    problems = check_of(tiny, processor).problems
    expected = [
        ("texts.jsonl", "has 11 samples but the meta file says 12"),
        ("gone.jsonl", "cannot be read"),
        ("texts.jsonl:2", "conversations"),
        ("texts.jsonl:9", "video"),
        ("singles.jsonl:1", "gone.png does not exist"),
        ("singles.jsonl:4", "the width and height that it notes"),
        ("pairs.jsonl:3", "2 <image> placeholders but 1 pictures"),
        ("pretrain.jsonl:1", "no tokens"),
    ]
    assert len(problems) == len(expected)
    for problem, (name, words) in zip(problems, expected, strict=True):
        assert f"/{name}" in problem and words in problem


def test_an_image_outside_of_the_root_is_a_problem_unless_allowed(tiny, processor):
    (tiny.folder.parent / "outside.png").write_bytes((tiny.folder / "p0.png").read_bytes())
    edit(tiny, "singles", 1, image="../outside.png")
    (problem,) = check_of(tiny, processor).problems
    assert "singles.jsonl:1 has the image '../outside.png', which is not below the root" in problem
    allowed = check.check(tiny.meta, processor, BUDGETS, decode=True, render=0, allow_outside_root=True)
    assert not any("outside" in each for each in allowed.problems)


def test_truncated_picture_is_found_by_decoding(tiny, processor):
    path = tiny.folder / "p2.png"
    path.write_bytes(path.read_bytes()[:100])
    problems = check_of(tiny, processor, decode=True).problems
    assert len(problems) == 2 and "singles.jsonl:3" in problems[0] and "pairs.jsonl:2" in problems[1]


def test_over_budget(tiny, processor):
    problems = check_of(tiny, processor, packing.PackingConfig(93, 11, 3)).problems
    assert len(problems) == 1 and "texts.jsonl:11 has 94 tokens and 0 tiles, over the row's budget of 93" in problems[0]


def test_repeat_time_that_leaves_nothing(tiny, processor):
    tiny.entries["pairs"]["repeat_time"] = 0.1
    tiny.write_meta()
    report = check_of(tiny, processor)
    assert len(report.problems) == 1 and "repeat_time 0.1 leaves none" in report.problems[0]
    assert report.summary()["rows_per_epoch"] == 0


def test_nothing_sound(tiny, processor):
    report = check_of(tiny, processor, packing.PackingConfig(3, 0, 3))
    assert len(report.problems) == 23 and report.rendered == [] and report.summary()["longest"] == 0


def test_unreadable_meta(tiny, processor):
    (tiny.folder / "meta.json").unlink()
    with pytest.raises(InputError, match=r"meta\.json is not there"):
        check_of(tiny, processor)


def test_rendered_sample_shows_what_is_supervised(tiny, processor):
    tiny.write_meta(pairs=tiny.entries["pairs"])
    text = check_of(tiny, processor).rendered[0]
    assert text.split("\n", 1)[1] == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n<img><IMG_CONTEXT> x 2</img>\n"
        "<img><IMG_CONTEXT> x 2</img>\nthe same?<|im_end|>\n<|im_start|>assistant\n>>>no<|im_end|><<<\n"
    )
    assert "pairs.jsonl:1 (51 tokens, 2 tiles)" in text


def test_histogram():
    lines = check.histogram(np.array([3, 4, 5, 9, 16, 16])).splitlines()
    assert [line.split("#")[0].split() for line in lines] == [
        ["<=", "4", "tokens:", "2"],
        ["<=", "8", "tokens:", "1"],
        ["<=", "16", "tokens:", "3"],
    ]
    assert lines[2].count("#") == 50 and lines[1].count("#") == 17


def test_problems_shown_are_capped(tiny, processor):
    report = check_of(tiny, processor, packing.PackingConfig(3, 0, 3))
    assert report.text(7).splitlines()[-1] == "... and 16 more (--show_problems)"
    assert report.text(7).count("over the row's budget") == 7
