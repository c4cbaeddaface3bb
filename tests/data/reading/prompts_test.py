"""Prompts as released: JSONL, meta files and MMPR-Tiny's parquet; the order in which a run meets them."""

import json
import logging

import numpy as np
import pyarrow.parquet
import pytest

from internvl_jax.data.reading import prompt_stream, prompts, sources
from internvl_jax.errors import InputError

DATASET = sources.Dataset("d", "images", "a.jsonl", False, None, 1, None)
LINE = {"image": "x.png", "question": "what?", "answer": "a cat"}


def parse(**fields):
    return prompts.parse_prompt(json.dumps({**LINE, **fields}).encode(), "a.jsonl:3", DATASET)


def lines_of(path, lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def texts(folder, count=7):
    return prompts.open_prompts(
        lines_of(folder / "q.jsonl", [{"question": f"how many {k}?", "answer": k} for k in range(count)])
    )


def test_a_line():
    assert parse(system_prompt="think") == prompts.Prompt(
        "a.jsonl:3", "think", "what?", "a cat", "", ("x.png",), DATASET
    )
    assert parse().images == ("images/x.png",)
    assert parse(image=["x.png", "a/y.png"]).images == ("images/x.png", "images/a/y.png")
    assert parse(image=None).images == ()
    assert parse(answer=3.5).answer == "3.5"


def test_images_may_lie_outside_of_a_root_that_nobody_gave(tmp_path):
    path = lines_of(tmp_path / "q.jsonl", [{"image": "/y.png", "question": "what?", "answer": "a cat"}])
    assert prompts.open_prompts(path)[0].images == ("/y.png",)
    assert prompts.open_prompts(path, str(tmp_path), allow_outside_root=True)[0].images == ("/y.png",)
    with pytest.raises(InputError, match=r"q.jsonl:1 has the image '/y.png', which is not below the root"):
        prompts.open_prompts(path, str(tmp_path))[0]
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"q": {"root": str(tmp_path), "annotation": str(path)}}))
    assert prompts.open_prompts(meta, allow_outside_root=True)[0].images == ("/y.png",)
    with pytest.raises(InputError, match=r"q.jsonl:1 has the image '/y.png', which is not below the root"):
        prompts.open_prompts(meta)[0]


def test_a_slice_of_prompts_is_a_list(tmp_path):
    found = texts(tmp_path)
    assert [prompt.answer for prompt in found[2:7:2]] == ["2", "4", "6"]
    assert [prompt.answer for prompt in found[-2:]] == ["5", "6"]
    assert found[9:] == []


def test_a_line_for_dropout_ntp_brings_its_response():
    prompt = parse(answer=None, chosen="a long story", rejected=None)
    assert (prompt.answer, prompt.response) == ("", "a long story")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": None}, 'has no text "question"'),
        ({"question": " "}, 'has an empty "question"'),
        ({"answer": None}, 'has no text "answer"'),
        ({"answer": ""}, 'has an empty "answer"'),
        ({"answer": True}, 'has no text "answer"'),
        ({"answer": None, "chosen": ""}, 'has an empty "chosen"'),
        ({"image": 3}, 'has an "image" that is neither'),
        ({"image": ["x.png", "/y.png"]}, "has the image '/y.png', which is not below the root 'images'"),
        ({"system_prompt": ["s"]}, 'has a "system_prompt" that is no text'),
        ({"video": "v.mp4"}, "has an image and a video"),
        ({"image": None, "video": "../v.mp4"}, "has the video '../v.mp4', which is not below the root 'images'"),
    ],
)
def test_a_bad_line(fields, message):
    with pytest.raises(InputError, match=f"^a.jsonl:3 {message}"):
        parse(**fields)


def test_the_key_is_what_is_asked():
    other = sources.Dataset("e", "elsewhere", "b.jsonl", True, 3, 1, None)
    moved = prompts.parse_prompt(json.dumps(LINE).encode(), "b.jsonl:8", other)
    assert moved.key == parse().key
    assert len({parse().key, parse(question="why?").key, parse(answer="a dog").key, parse(image="y.png").key}) == 4


def test_a_meta_file_numbers_all_its_prompts(tmp_path):
    entries = {
        name: {"root": name, "annotation": str(lines_of(tmp_path / f"{name}.jsonl", lines)), "repeat_time": repeat}
        for name, lines, repeat in [("one", [LINE] * 3, 2.5), ("two", [{**LINE, "question": "why?"}] * 4, 0.5)]
    }
    made = prompts.open_prompts(lines_of(tmp_path / "meta.json", [entries]))
    assert len(made) == 7
    assert [made[k].name.rsplit("/")[-1] for k in (0, 2, 3, 6)] == [
        "one.jsonl:1",
        "one.jsonl:3",
        "two.jsonl:1",
        "two.jsonl:4",
    ]
    assert made[3].images == ("two/x.png",)
    assert made.mixture().tolist() == [0, 1, 2, 0, 1, 2, 0, 3, 4]
    with pytest.raises(InputError, match=r"names the root of each data set; leave out"):
        prompts.open_prompts(tmp_path / "meta.json", root="x")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"q.csv is no file of prompts; give .jsonl, .parquet"):
        prompts.open_prompts(tmp_path / "q.csv")
    with pytest.raises(InputError, match=r"q.jsonl cannot be read: No such file"):
        prompts.open_prompts(tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("question", "images", "system"),
    [
        ("how many?", 0, None),
        ("how many?", 1, None),
        ("<image>\nhow many?", 1, "think"),
        ("in <image> how many?", 1, None),
        ("<image><image>the same?", 2, None),
    ],
)
def test_prompts_have_the_tokens_and_tiles_of_training(tiny, processor, question, images, system):
    """What is sampled from is what is trained on, up to the answer."""
    from internvl_jax.data.reading.samples import SampleReader

    names = [tiny.picture(f"p{k}.png", 40 + 3 * k, 17)["image"] for k in range(images)]
    fields = {"image": names[0] if images == 1 else names} if images else {}
    line = {**fields, "question": question, "answer": "three"} | ({"system_prompt": system} if system else {})
    record = {**fields, "conversations": sources.question_turns(question, system) + [{"from": "gpt", "value": "three"}]}
    entry = tiny.annotate("q", [line])
    (trained,) = sources.read_meta(tiny.write_meta(q=tiny.annotate("t", [record], max_dynamic_patch=4)))
    reader = SampleReader(trained, sources.scan_lines(trained.annotation)[0], processor)
    sample = reader.load(0, np.random.default_rng(0))

    prompt = prompts.open_prompts(tiny.write_meta(q={**entry, "max_dynamic_patch": 4}))[0]
    inputs = prompts.encode_prompt(prompt, processor)
    start = int(sample.supervised_T.argmax())
    assert inputs.tokens_T.tolist() == sample.tokens_T[:start].tolist()
    np.testing.assert_array_equal(inputs.tiles_GHWC, sample.tiles_GHWC)
    assert prompts.measure(prompt, processor) == (len(inputs.tokens_T), len(inputs.tiles_GHWC))


def test_blind_prompts_have_no_picture_and_go_on_with_the_answer(tiny, processor):
    name = tiny.picture("p.png", 8, 8)["image"]
    line = {"image": name, "question": "<image>\nhow many?", "answer": "three"}
    prompt = prompts.open_prompts(lines_of(tiny.folder / "q.jsonl", [line]))[0]
    turns = [{"from": "human", "value": "how many?"}, {"from": "gpt", "value": "one red square"}]
    trained_T, supervised_T = processor.template.encode_training(turns, [], processor.tokenizer)
    start, words = int(supervised_T.argmax()), processor.tokenizer.encode("one red")
    blind = prompts.encode_blind(prompt, processor, "one red")
    assert not len(blind.tiles_GHWC)
    assert blind.tokens_T.tolist() == [*trained_T[:start].tolist(), *words]
    assert prompts.encode_blind(prompt, processor, "").tokens_T.tolist() == trained_T[:start].tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "none.png"}, r"q.jsonl:1: .*none.png does not exist"),
        ({"question": "<image><image>?"}, r"q.jsonl:1: a record has 2 <image> placeholders but 1 pictures"),
        ({"image": ["p.png", "p.png"]}, r"q.jsonl:1: a record has 0 <image> placeholders but 2 pictures"),
    ],
)
def test_what_cannot_be_encoded_is_named(tiny, processor, fields, message):
    tiny.picture("p.png", 8, 8)
    line = {"image": "p.png", "question": "what?", "answer": "x", **fields}
    prompt = prompts.open_prompts(lines_of(tiny.folder / "q.jsonl", [line]))[0]
    for read in (prompts.encode_prompt, prompts.measure):
        with pytest.raises(InputError, match=message):
            read(prompt, processor)


def test_screening_leaves_out_and_says_so(tmp_path, processor, caplog):
    lines = [{"question": f"what is {k}?", "answer": "x"} for k in range(5)]
    lines[1]["question"] = "one red square " * 50
    lines[2]["image"] = "none.png"
    made = prompts.open_prompts(lines_of(tmp_path / "q.jsonl", lines))
    limit, _ = prompts.measure(made[0], processor)
    lines = [{"key": made[k].key, "accuracy": accuracy} for k, accuracy in [(0, 0.2), (3, 0.19), (1, None)]]
    accuracies = prompts.read_accuracies(lines_of(tmp_path / "accuracies.jsonl", lines))
    assert len(accuracies) == 2
    with caplog.at_level(logging.WARNING):
        left = prompts.screen_prompts(made, processor, limit, accuracies)
    assert left.numbers.tolist() == [0, 4]
    assert (left.too_long, left.off_accuracy, list(left.broken)) == (1, 1, [2])
    assert f"left out 1 prompts of over {limit} tokens: {tmp_path}/q.jsonl:2" in caplog.text
    assert "left out 1 broken prompts" in caplog.text and "none.png does not exist" in caplog.text
    with pytest.raises(InputError, match=r"none of 5 prompts is left: 1 are broken, 4 have over 3 tokens"):
        prompts.screen_prompts(made, processor, 3)


def test_screening_for_training_by_tiles_and_answers(tiny, processor, caplog):
    small, wide = (tiny.picture(f"{width}.png", width, 8)["image"] for width in (8, 40))
    lines = [{"image": small, "question": "what?", "answer": "x"}, {"image": wide, "question": "what?", "answer": "x"}]
    lines += [{"question": "why?", "answer": "x"}, {"image": small, "question": "who?", "chosen": "a story"}]
    made = prompts.open_prompts(lines_of(tiny.folder / "q.jsonl", lines))
    every = prompts.screen_prompts(made, processor, 1000)
    assert (every.numbers.tolist(), every.most_tiles, every.too_long, every.broken) == ([0, 1, 2, 3], 6, 0, {})
    for limit, numbers, most in ((6, [0, 1, 2], 6), (5, [0, 2], 1), (0, [2], 0)):
        left = prompts.screen_prompts(made, processor, 1000, max_tiles=limit, answered=True)
        assert (left.numbers.tolist(), left.most_tiles) == (numbers, most)
        assert left.too_long == 3 - len(numbers) and list(left.broken) == [3]
        assert f"{tiny.folder}/q.jsonl:4 has no answer to grade with" in left.broken[3]
    assert f"left out 1 prompts of over 1000 tokens or 5 tiles: {tiny.folder}/q.jsonl:2" in caplog.text


def test_the_digest_is_what_is_asked_in_which_order(tmp_path, processor):
    def digest(name, lines, **limits):
        (tmp_path / name).mkdir()
        made = prompts.open_prompts(lines_of(tmp_path / name / "q.jsonl", lines))
        return prompts.screen_prompts(made, processor, 1000, **limits).digest

    lines = [{"question": f"what is {k}?", "answer": "x"} for k in range(3)]
    first = digest("first", lines)
    # Another folder and what is left out anyhow change nothing.
    assert digest("moved", lines) == first
    unanswered = {"question": "who?", "chosen": "a story"}
    assert digest("more", [*lines, {"question": "", "answer": "x"}, unanswered], answered=True) == first
    others = {
        "question": [{**lines[0], "question": "why?"}, *lines[1:]],
        "answer": [{**lines[0], "answer": "y"}, *lines[1:]],
        "order": lines[::-1],
        "fewer": lines[:2],
        "again": [*lines, lines[0]],
    }
    assert len({first, *(digest(name, changed) for name, changed in others.items())}) == 6


def test_bad_accuracies_are_named(tmp_path):
    path = lines_of(tmp_path / "a.jsonl", [{"key": "k", "accuracy": 0.5}, {"key": "k", "accuracy": "half"}])
    with pytest.raises(InputError, match=r"a\.jsonl:2\.accuracy is .half."):
        prompts.read_accuracies(path)


def test_the_stream_is_a_function_of_seed_and_position(tmp_path):
    made = texts(tmp_path)
    stream = prompt_stream.PromptStream(made, made.mixture(), seed=3)
    whole = stream.numbers(23, 0).tolist()
    for start, count in [(0, 5), (5, 9), (6, 1), (20, 3), (14, 0)]:
        fresh = prompt_stream.PromptStream(made, made.mixture(), seed=3)
        assert fresh.numbers(count, start).tolist() == whole[start : start + count]
    for epoch in range(3):
        assert sorted(whole[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert whole[:7] != whole[7:14]
    assert prompt_stream.PromptStream(made, made.mixture(), seed=4).numbers(23, 0).tolist() != whole
    assert [prompt.answer for prompt in stream.take(3, 5)] == [str(number) for number in whole[5:8]]


# MMPR-Tiny.

ROW = {
    "data_source": "hiyouga/geometry3k",
    "prompt": [{"role": "user", "content": "<image>How many?\nBox it."}],
    "images": [{"path": "MMPR-Tiny/images/p.png"}],
    "reward_model": {"ground_truth": "3", "style": "rule"},
    "extra_info": {"question": "How many?", "index": 0},
}


def parquet_of(path, rows, group=2):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def test_parquet_rows_are_prompts(tiny, processor, monkeypatch):
    monkeypatch.setattr(prompts.parquet, "_KEPT_BYTES", 0)  # row groups are read again and again
    (tiny.folder / "images").mkdir()
    tiny.picture("images/p.png", 8, 8)
    asked = "<image>\nand\n<image>\nthe same?"
    several = {
        **ROW,
        "prompt": [{"role": "system", "content": "think"}, {"role": "user", "content": asked}],
        "images": [{"path": "MMPR-Tiny/images/p.png"}] * 2,
    }
    made = prompts.open_prompts(parquet_of(tiny.folder / "mmpr_tiny.parquet", [ROW, several, ROW, ROW, ROW]))
    assert len(made) == 5
    first, second = made[4], made[1]
    assert first.name == f"{tiny.folder}/mmpr_tiny.parquet:5" and made[0].key == first.key
    assert (first.system, first.question, first.answer) == (None, "<image>\nHow many?\nBox it.", "3")
    assert first.images == (f"{tiny.folder}/images/p.png",)
    assert (second.system, second.question, len(second.images)) == ("think", asked, 2)
    assert prompts.screen_prompts(made, processor, 1000).numbers.tolist() == [0, 1, 2, 3, 4]


def test_parquet_rows_may_hold_their_pictures(tiny, processor):
    tiny.picture("p.png", 8, 8)
    image = (tiny.folder / "p.png").read_bytes()
    path = parquet_of(tiny.folder / "q.parquet", [{**ROW, "images": [{"bytes": image, "path": None}]}])
    assert prompts.encode_prompt(prompts.open_prompts(path)[0], processor).tiles_GHWC.shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": []}, r"q.parquet:2 has a prompt that is not one user text"),
        ({"prompt": [*ROW["prompt"], {"role": "assistant", "content": "x"}]}, r"q.parquet:2 has a prompt that is not"),
        ({"prompt": [{"role": "user", "content": " "}]}, r"q.parquet:2 has an empty question"),
        ({"reward_model": {"ground_truth": "", "style": ""}}, r'q.parquet:2 has no "ground_truth" text'),
        ({"images": [{"path": None}]}, r"q.parquet:2 has image 0 without path and bytes"),
    ],
)
def test_bad_rows_are_named(tmp_path, fields, message):
    made = prompts.open_prompts(parquet_of(tmp_path / "q.parquet", [ROW, {**ROW, **fields}]))
    with pytest.raises(InputError, match=message):
        made[1]


def test_bad_parquet_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"q.parquet has no column 'prompt'; it has question"):
        prompts.open_prompts(parquet_of(tmp_path / "q.parquet", [{"question": "x"}]))
    (tmp_path / "r.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match=r"r.parquet cannot be read"):
        prompts.open_prompts(tmp_path / "r.parquet")
