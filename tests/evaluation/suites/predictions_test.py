"""Answers that are written and read back: in four formats, after kills, with what goes wrong."""

import json
import pathlib

import openpyxl
import pytest

from internvl_jax.errors import InputError
from internvl_jax.evaluation import (
    Prediction,
    answer_suite,
    get_suite,
    open_suite,
    read_predictions,
    reread,
    score_suite,
    summary,
)
from internvl_jax.evaluation.suites.predictions import PredictionFile
from internvl_jax.evaluation.suites.suite_report import _line
from internvl_jax.inference import Answer

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
DATA = GOLDEN / "eval_image" / "data"
NAMES = ("MMStar", "POPE", "OCRBench", "HallusionBench", "RefCOCO")


def in_every_format(folder, suite, texts):
    """The same answers as VLMEvalKit and this project write them."""
    questions = {row.index: row.cells["question"] for row in open_suite(suite, DATA).table.rows}
    lines = [Prediction(index, text, suite=suite.name) for index, text in texts.items()]
    (folder / "a.jsonl").write_text("".join(json.dumps(vars_of(line)) + "\n" for line in lines))
    (folder / "a.json").write_text(json.dumps(texts))
    records = [{"index": index, "question": questions[index], "prediction": text} for index, text in texts.items()]
    (folder / "b.json").write_text(json.dumps(records))
    book = openpyxl.Workbook()
    for row in [list(records[0]), *(list(record.values()) for record in records)]:
        book.active.append(row)
        # VLMEvalKit writes numbers where all indices are some.
        book.active.cell(book.active.max_row, 1).value = int(row[0]) if row[0].isdigit() else row[0]
    book.active.cell(book.active.max_row + 2, 2).value = " "  # rows without an index are none
    book.save(folder / "a.xlsx")
    cells = [record.values() for record in [dict(zip(records[0], records[0])), *records]]
    quoted = ["\t".join('"' + text.replace('"', '""') + '"' for text in row) for row in cells]
    (folder / "a.tsv").write_text("\n".join(quoted) + "\n")
    return [folder / name for name in ("a.jsonl", "a.json", "b.json", "a.xlsx", "a.tsv")]


def vars_of(line):
    return {name: getattr(line, name) for name in line.__struct_fields__}


@pytest.mark.parametrize("name", NAMES)
def test_formats_agree(tmp_path, name):
    suite = get_suite(name)
    texts = json.loads((DATA / f"{name}.predictions.json").read_text())
    file, scores = open_suite(suite, DATA), []
    for path in in_every_format(tmp_path, suite, texts):
        found = read_predictions(path, name)
        assert {index: each.prediction for index, each in found.items()} == texts
        scores.append(score_suite(file, found, None).rated)
    assert all(score == scores[0] for score in scores)


def answers(indices):
    return [Prediction(index, f"answer {index}", tokens=3, suite="POPE") for index in indices]


INDICES = [str(number) for number in range(23)]


def written(path, stop_at=None, cut=0, mode="cot"):
    """Answers in batches of five. With `stop_at` the run dies at that batch, and leaves a part of a line."""
    asked = []

    def answer(indices):
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        asked.append(list(indices))
        return answers(indices)

    file = PredictionFile(path, {"mode": mode, "seed": 0})
    try:
        file.write(INDICES, answer, 5)
    except KeyboardInterrupt:
        whole = file.partial.read_bytes()
        file.partial.write_bytes(whole[: len(whole) - cut])
    return asked


@pytest.mark.parametrize(("stop_at", "cut", "left"), [(0, 0, 5), (2, 0, 3), (2, 1, 4), (4, 7, 2), (3, 400, 4)])
def test_a_killed_run_goes_on_to_the_same_file(tmp_path, stop_at, cut, left):
    written(tmp_path / "whole.jsonl")
    path = tmp_path / "POPE.jsonl"
    written(path, stop_at, cut)
    assert not path.exists()
    assert len(written(path)) == left
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert written(path) == [] and not path.with_name("POPE.jsonl.partial").exists()
    assert list(read_predictions(path, "POPE")) == INDICES


def test_a_kill_while_it_goes_on_loses_nothing(tmp_path):
    """What was kept is in the file before the next batch is asked for."""
    path = tmp_path / "POPE.jsonl"
    written(path, 2, 1)
    file = PredictionFile(path, {"mode": "cot", "seed": 0})
    before = []

    def answer(indices):
        before.append(len(file.partial.read_bytes().split(b"\n")) - 1)
        return answers(indices)

    file.write(INDICES, answer, 5)
    assert before == [5, 10, 15, 20]


def test_what_was_begun_otherwise_is_not_taken_up(tmp_path):
    written(tmp_path / "a.jsonl", 2)
    with pytest.raises(InputError, match="was begun otherwise \\(mode: 'cot' before, 'default' now\\)"):
        written(tmp_path / "a.jsonl", mode="default")
    (tmp_path / "c.jsonl.partial").write_bytes((tmp_path / "a.jsonl.partial").read_bytes())  # nothing says how
    assert len(written(tmp_path / "c.jsonl", mode="default")) == 5
    (tmp_path / "b.jsonl").write_text('{"index": "0", "prediction": "of somebody"}\n')
    with pytest.raises(InputError, match=r"b\.jsonl is there, but not b\.settings\.json, which says how"):
        written(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.json",
            '[{"index": 0, "prediction": 1}, {"index": "0", "prediction": 2}]',
            "the index '0' stands there twice",
        ),
        ("a.json", '[{"index": 0}]', "record 0 lacks 'index' or 'prediction'"),
        ("a.json", "{}", "has no predictions"),
        ("a.json", '"x"', "holds no predictions"),
        ("a.jsonl", '{"index": "0"}', "lacks the field 'prediction'"),
        ("a.jsonl", '{"index": "0", "prediction": "a", "suite": "MME"}', "is an answer to MME, not to POPE"),
        ("a.jsonl", '{"index": "0", "pred', "is not valid JSON"),
        ("a.tsv", "index\tx\n", "has no column 'prediction'"),
        ("a.xlsx", "no zip", "can't be read as xlsx"),
        ("a.pkl", "x", "is no file of predictions that can be read"),
    ],
)
def test_bad_predictions_are_one_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        read_predictions(tmp_path / name, "POPE")
    assert "\n" not in str(caught.value)


def test_answers_to_another_table_are_not_taken_up(tmp_path):
    ask = lambda talks: [Answer("a", 1, ()) for _ in talks]
    for answer in ("a", "b"):
        (tmp_path / "EasyVQA.tsv").write_text(f"index\timage_path\tquestion\tanswer\n1\tno.png\tq\t{answer}\n")
        (tmp_path / "no.png").touch()
        file = open_suite(get_suite("EasyVQA"), tmp_path)
        answered = lambda file=file: answer_suite(file, "default", tmp_path / "a.jsonl", ask, {}, 64)
        if answer == "a":
            answered()
            assert file.is_published is None and file.has_answers
    with pytest.raises(InputError, match="was begun otherwise \\(md5: "):
        answered()


def test_answers_to_another_suite_are_refused():
    file = open_suite(get_suite("POPE"), DATA)
    with pytest.raises(InputError, match="have the row 'VD_illusion_1_0_1_0', which is not in"):
        score_suite(file, {"VD_illusion_1_0_1_0": Prediction("VD_illusion_1_0_1_0", "Yes")}, None)
    with pytest.raises(InputError, match=r"no question of .* has a prediction; give those of POPE"):
        score_suite(file, {"0": Prediction("0", "Yes", question="What is that?")}, None)
    with pytest.raises(InputError, match="MMVet can be scored by a judge alone; give one by --judge"):
        score_suite(open_suite(get_suite("MMVet"), DATA), {"v1_0": Prediction("v1_0", "x")}, None)
    with pytest.raises(InputError, match="WildVision can't be scored here: its judge must see"):
        score_suite(open_suite(get_suite("WildVision"), DATA), {"0": Prediction("0", "x")}, None)


def test_rows_are_found_by_either_spelling_of_their_index(tmp_path):
    """01 is 1 where all indices are numbers, and stays 01 beside others; predictions may have it otherwise."""
    for own, others, given, row in (("01", "2", "01", "1"), ("01", "x", "01", "01"), ("1", "x", "01", "1")):
        (tmp_path / "GQA_TestDev_Balanced.tsv").write_text(
            f"index\timage_path\tquestion\tanswer\n{own}\ta.png\tq\tcat\n{others}\ta.png\tq\tdog\n"
        )
        file = open_suite(get_suite("GQA_TestDev_Balanced"), tmp_path)
        (tmp_path / "a.json").write_text(json.dumps({given: "cat"}))
        result = score_suite(file, read_predictions(tmp_path / "a.json"), None)
        assert result.rated.rows == [{"index": row, "score": 1.0}] and list(result.predictions) == [row]
    with pytest.raises(InputError, match="have the row '1' twice"):
        score_suite(file, {name: Prediction(name, "cat") for name in ("1", "01")}, None)


def test_rescored_answers_are_split_and_unboxed():
    """VLMEvalKit's files have whole responses; nothing says of them what was cut off."""
    file, thought = open_suite(get_suite("BLINK"), DATA), "<think>B or C</think>\nso \\boxed{{{}}}"
    texts = json.loads((DATA / "BLINK.predictions.json").read_text())
    foreign = {index: Prediction(index, thought.format(text)) for index, text in texts.items()}
    scores = [
        score_suite(file, found, None)
        for found in (
            {index: Prediction(index, text, tokens=3) for index, text in texts.items()},
            reread(file.suite, "thinking", foreign),
            reread(file.suite, "thinking", reread(file.suite, "thinking", foreign)),  # what of ours was read before
        )
    ]
    assert all(score.rated == scores[0].rated for score in scores)
    assert [score.truncated for score in scores] == [0.0, None, None]
    assert reread(file.suite, "default", foreign) == foreign
    told = [_line(summary(file, score, None))["cut off"] for score in scores]
    assert told == ["0.0%", "not known", "not known"]


def test_a_table_without_answers_is_not_scored(tmp_path):
    for name, columns, said in (
        ("MMStar", "index\timage\tquestion\tA", "the table has no column 'answer'"),
        ("OCRBench", "index\timage\tquestion\tanswer", "the table has no column 'category'"),
        ("MMBench_DEV_EN_V11", "index\timage\tquestion\tanswer", "tells rotations by whole numbers"),
    ):
        path = tmp_path / f"{name}.tsv"
        path.write_text(f"{columns}\nx\t{'a' * 80}\tq\tA\n")
        with pytest.raises(InputError, match=said):
            score_suite(open_suite(get_suite(name), path), {"x": Prediction("x", "A")}, None)
