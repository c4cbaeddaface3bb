"""A suite from its questions to its report, with somebody who answers in a model's place."""

import http.server
import json
import math
import pathlib
import random
import threading
import types
import typing

import pytest

from internvl_jax.data import is_unfinished
from internvl_jax.errors import InputError
from internvl_jax.evaluation import (
    SUITES,
    Endpoint,
    Prediction,
    answer_suite,
    check_pictures,
    describe_suites,
    generation,
    get_suite,
    open_suite,
    plain,
    read_predictions,
    score_suite,
    size_name,
    summary,
    write_report,
)
from internvl_jax.evaluation.suites import (
    final_text,
    judged_scores,
    judges,
    place_scores,
    published,
    suite_file,
    suite_prompts,
    suite_run,
    video_scores,
)
from internvl_jax.evaluation.suites.suite import Predicted
from internvl_jax.evaluation.suites.tsv import TableRow
from internvl_jax.inference import Answer
from tests.evaluation.suites.tsv_test import encoded

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
FOLDER = GOLDEN / "eval_image"
RECORDED = {path.stem for path in GOLDEN.glob("eval_*/scores/*.json")}
LETTERS = "".join(random.Random(3).choices("abcdefghij klmnopq", k=500))
# Recorded, and yet not complete.
PARTLY = {"WeMath", "MathVerse_MINI_Vision_Only", "LogicVista", "MMVet", "MMBench-Video"}


def as_text(conversation):
    """What a processor makes of a conversation's last turn: a mark and a line's end for a picture."""
    parts = conversation[-1]["content"]
    return "".join(part["text"] if part["type"] == "text" else "<image>\n" for part in parts)


@pytest.mark.parametrize("name", ["MMMU_DEV_VAL", "MUIRBench", "BLINK", "DynaMath", "ScreenSpot_Mobile"])
@pytest.mark.parametrize("mode", ["default", "thinking"])
def test_a_conversation_says_what_the_prompt_says(name, mode):
    file = open_suite(get_suite(name), FOLDER / "data")
    for row, prompt in zip(file.table.rows, file.prompts(mode), strict=True):
        talk = suite_run.messages(file, row, mode)
        assert as_text(talk) == prompt["question"]
        assert (talk[0]["content"] if mode == "thinking" else None) == prompt["system"]
        pictures = [part["image_url"] for part in talk[-1]["content"] if part["type"] == "image_url"]
        tiles = [suite_file.tiles_of(url["url"], url["max_dynamic_patch"], False) for url in pictures]
        assert tiles == prompt["tiles"]  # the first picture of MMMU is magnified already


def recorded_texts(name):
    return json.loads((FOLDER / "data" / f"{name}.predictions.json").read_text())


@pytest.mark.parametrize(
    ("mode", "around"),
    [
        ("default", "{}"),
        ("cot", "B or C, so \\boxed{{{}}}"),
        ("thinking", "<think>B or C</think>so \\boxed{{{}}}"),
    ],
)
def test_from_questions_to_the_report(tmp_path, mode, around):
    file, texts = open_suite(get_suite("BLINK"), FOLDER / "data"), list(recorded_texts("BLINK").values())
    given = iter(texts)
    ask = lambda talks: [Answer(around.format(next(given)), 7, (), True) for _ in talks]
    answer_suite(file, mode, tmp_path / "BLINK.jsonl", ask, {}, 8)
    result = score_suite(file, read_predictions(tmp_path / "BLINK.jsonl", "BLINK"), None)
    wanted = json.loads((FOLDER / "scores" / "BLINK.json").read_text())["score"]
    assert result.rated.score == wanted
    assert (result.answered, result.questions, result.truncated, result.unfinished) == (30, 30, 1.0, 0.0)
    low, high = result.interval
    assert low < 60 < high
    write_report(tmp_path / "report", [(file, result)], "8B")
    (told,) = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (told["suite"], told["score"], told["paper"]) == ("BLINK", wanted, 59.5)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Wrong answers: 12" in page and page.count('class="wrong"') == 12 and "data:image/jpeg" in page
    assert page.count("<img") >= 12


@pytest.mark.parametrize(("name", "pictures", "limit"), [("BLINK", 10, 6), ("BLINK", 20, 3), ("MMMU_DEV_VAL", 7, 9)])
def test_pictures_of_a_question_share_its_tiles(name, pictures, limit):
    """64 among all, one each at least."""
    suite, row = get_suite(name), TableRow("0", {"question": "q"}, 0)
    assert suite_prompts.prompt(suite, row, pictures, "default").limit == limit
    assert suite_prompts.prompt(suite, row, 100, "default").limit == 1


@pytest.mark.parametrize("truth", ["[0.25, 0.5, 0.75, 1.0]", "[50, 50, 150, 100]"])
def test_true_boxes_are_fractions_or_pixels(truth):
    cells = {"width": "200", "height": "100", "answer": truth, "split": "RefCOCO_val"}
    rated = place_scores.refcoco(get_suite("RefCOCO"), [Predicted("1", cells, {}, "[[250, 500, 750, 1000]]")], None)
    assert rated.rows[0]["iou"] == pytest.approx(1)


def test_marks_of_names_and_boxes_are_no_part_of_answers():
    """The release's tokenizers leave them out of what is scored; boxes are found by their brackets."""
    shown = lambda name, text, mode="default": suite_run.shown_answer(get_suite(name), mode, text)
    assert shown("GQA_TestDev_Balanced", "<ref>cat</ref>") == "cat"
    assert shown("MMStar", "<think><box>a</think>\\boxed{<ref>B</ref>}", "cot") == "B"
    said = "<ref>cat</ref><box>[[250, 500, 750, 1000]]</box>"
    assert shown("RefCOCO", said) == "cat[[250, 500, 750, 1000]]"
    assert shown("ScreenSpot_Mobile", said) == "x=0.5, y=0.75"
    cells = {"width": "200", "height": "100", "answer": "[50, 50, 150, 100]", "split": "RefCOCO_val"}
    rated = place_scores.refcoco(get_suite("RefCOCO"), [Predicted("1", cells, {}, shown("RefCOCO", said))], None)
    assert rated.rows[0]["iou"] == pytest.approx(1)


def test_rotations_are_those_of_the_table():
    """Of which one without an answer doesn't move the others."""
    file = open_suite(get_suite("CRPE_RELATION"), FOLDER / "data")
    right = {row.index: Prediction(row.index, row.cells["answer"]) for row in file.table.rows}
    first, *others = right
    wrong = right | {others[2]: Prediction(others[2], "no")}  # the last of the first four
    del wrong[first]
    groups = len(right) // 4
    assert score_suite(file, wrong, None).rated.score["total"] == pytest.approx((groups - 1) / groups)
    assert score_suite(file, right, None).rated.headline == 100


def test_no_number_is_null_in_json():
    assert plain({"a": [math.nan, 1.5], "b": (math.inf,)}) == {"a": [None, 1.5], "b": [None]}


def test_a_report_without_the_pictures(tmp_path):
    """Answers are scored without pictures, and the report says that it lacks them."""
    (tmp_path / "OCRVQA_TESTCORE.tsv").write_text("index\timage_path\tquestion\tanswer\n1\tno.jpg\tq\ta\n")
    file = open_suite(get_suite("OCRVQA_TESTCORE"), tmp_path)
    result = score_suite(file, {"1": Prediction("1", "b")}, None)
    write_report(tmp_path / "report", [(file, result)], None)
    assert "the picture no.jpg is not there" in (tmp_path / "report" / "report.html").read_text()


def test_errors_say_which_row_has_the_picture(tmp_path):
    rows = [f"1\t{encoded()}\tq\ta\n", f"2\t{'#' * 80}\tq\ta\n"]
    (tmp_path / "OCRBench.tsv").write_text("index\timage\tquestion\tanswer\n" + "".join(rows))
    file = open_suite(get_suite("OCRBench"), tmp_path)
    with pytest.raises(InputError, match=r"OCRBench\.tsv, row 2: image of 0 bytes is not"):
        check_pictures(file, "default")

    def ask(talks):
        raise InputError(f"conversation {len(list(talks))}: it is broken")

    with pytest.raises(InputError, match="OCRBench, from row 1 on: conversation 2: it is broken"):
        answer_suite(file, "default", tmp_path / "a.jsonl", ask, {}, 64)


@pytest.mark.parametrize("score", ["NaN", "Infinity", "1e99", "9" * 5000, "null", '"1"'])
def test_a_judge_that_gives_no_score_gives_none(score):
    cells = {"qid": "1", "grading_query": "{PREDICTION}"}
    judge = lambda prompt: f'{{"extracted_answer": "a", "score": {score}}}'
    rated = judged_scores.charxiv(get_suite("CharXiv_descriptive_val"), [Predicted("1", cells, {}, "x")], judge)
    assert rated.headline == 0
    assert judges.judged_likeness(lambda _: "3" * 400, "q", "a", "b") is None


def test_a_score_beyond_its_bounds_counts_as_one(tmp_path):
    """And what of a response is cut off is told of all of it."""
    name = "CharXiv_reasoning_val"
    columns, cells = ("index\timage\tquestion\tgrading_query\tinst_category", f"1\t{encoded()}\tq\t{{PREDICTION}}\t2.0")
    (tmp_path / f"{name}.tsv").write_text(f"{columns}\n{cells}\n")
    file, said = open_suite(get_suite(name), tmp_path), Prediction("1", "5", "<think>so \\boxed{5} or")
    result = score_suite(file, {"1": said}, lambda prompt: '{"extracted_answer": 5, "score": 5}')
    assert file.has_answers and result.interval == score_suite(file, {"1": said}, _right).interval
    assert result.unfinished == 1 and result.rated.headline == 500
    assert result.rated.score == [{"Text-in-General": 5.0, "Overall": 5.0}]


def _right(prompt):
    return '{"extracted_answer": 5, "score": 1}'


def test_judges_of_videos_see_the_options_without_their_letters():
    cells = {"question": "q", "candidates": "['A. red', 'B. blue']", "answer": "B", "duration": "short"}
    cells |= {"domain": "Knowledge", "sub_category": "Law", "task_type": "OCR Problems"}
    judge = lambda prompt: "B" if "A. red\nB. blue\nAnswer: no idea" in prompt else "A"
    rated = video_scores.video_mme(get_suite("Video-MME"), [Predicted("1", cells, {}, "no idea")], judge)
    assert (rated.headline, rated.judged) == (100, 1)


@pytest.mark.parametrize("choice", ["x", "-1", "30", "1.0", ""])
def test_the_number_of_an_option_is_one(choice):
    cells = {"question": "q", "candidates": "['red', 'blue']", "correct_choice": choice}
    with pytest.raises(InputError, match=f"row 1 has the correct_choice '{choice}'; give the number of an option"):
        video_scores.long_video_bench(get_suite("LongVideoBench"), [Predicted("1", cells, {}, "A")], None)


@pytest.mark.parametrize("true", ["nan", "inf", "three", ""])
def test_a_true_number_that_is_none_makes_nothing_right(true):
    cells = {"question_type": "object_counting", "answer": true}
    assert video_scores.vsi(get_suite("VSI-Bench"), [Predicted("1", cells, {}, "3")], None).headline == 0


def test_no_answer_is_right_where_the_true_one_is_no_option():
    cells = {"question": "q", "candidates": "['red', 'blue']", "answer": "green", "task_type": "count"}
    for text in ("", "A", "green"):
        assert video_scores.mlvu(get_suite("MLVU_MCQ"), [Predicted("1", cells, {}, text)], None).headline == 0


def test_what_the_paper_has_of_a_size():
    """Longer answers of the largest, and its figures with parallel thinking."""
    longest = {size: generation("default", size)["max_new_tokens"] for size in (None, "8B", "241B-A28B")}
    assert longest == {None: 4096, "8B": 4096, "241B-A28B": 16384}
    assert generation("thinking", "241B-A28B")["max_new_tokens"] == 65536
    config = types.SimpleNamespace(text=types.SimpleNamespace(width=4096, layers=36))
    assert [size_name(config, parallel) for parallel in (False, True)] == ["8B", "8B + PT"]
    figures = published.published(get_suite("MathVista_MINI"))
    assert (figures["8B"], figures["8B + PT"]) == (78.4, 80.8)


def test_only_what_is_complete_is_called_so():
    """And each of these has recorded cases: tests of recorded_test.py go by the same folder."""
    assert {name for name, suite in SUITES.items() if not suite.missing} == RECORDED - PARTLY
    told = describe_suites()
    for name, suite in SUITES.items():
        (line,) = [line for line in told.split("\n") if line.startswith(f"{name} ")]
        assert line.endswith((suite.missing and f"not complete: {suite.missing}") or "complete")
    with pytest.raises(InputError, match="no suite is called 'MMStars'"):
        get_suite("MMStars")


def test_a_judge_is_asked_where_the_rule_cannot_tell():
    file = open_suite(get_suite("RealWorldQA"), FOLDER / "data")
    rows = file.table.rows[:3]
    texts = {rows[0].index: "A", rows[1].index: "no idea at all", rows[2].index: "some other words"}
    predictions = {index: Prediction(index, text) for index, text in texts.items()}
    asked: typing.ClassVar[list[str]] = []

    def judge(prompt, _=0.0):
        asked.append(prompt)
        return rows[len(asked)].cells["answer"]

    result = score_suite(file, predictions, judge)
    assert result.rated.judged == len(asked) == 2 and "no idea at all" in asked[0]
    assert [row["hit"] for row in result.rated.rows] == [int(rows[0].cells["answer"] == "A"), 1, 1]
    alone = score_suite(file, predictions, None)
    assert [row["hit"] for row in alone.rated.rows][1:] == [0, 0]
    assert "Scored by rule alone" in " ".join(summary(file, alone, None)["remarks"])

    unneeded = score_suite(file, {rows[0].index: predictions[rows[0].index]}, judge)
    assert unneeded.rated.judged == 0 and "by rule alone" not in " ".join(summary(file, unneeded, None)["remarks"])


class _Completions(http.server.BaseHTTPRequestHandler):
    asked: typing.ClassVar[list[str]] = []
    models: typing.ClassVar[list[str]] = []

    def do_GET(self):
        body = json.dumps({"object": "list", "data": [{"id": name} for name in self.models]}).encode()
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(said["model"])
        content = f"{said['model']}: {said['messages'][0]['content']} ({self.headers['Authorization']})"
        content += f" at {said['temperature']}" if said["temperature"] else ""
        replies = {
            "m": {"choices": [{"message": {"content": content}}]},
            "mute": {"choices": [{"message": {"content": None}}]},
        }
        body = json.dumps(replies.get(said["model"], {})).encode()
        self.send_response({"busy": 429, "barred": 403}.get(said["model"], 200))
        self.send_header("Content-Length", str(len(body) + (said["model"] == "cut off")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_judge_behind_an_endpoint(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Completions) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        assert Endpoint(url, "m", "k")("hello") == "m: hello (Bearer k)"
        _Completions.models[:] = ["m"]
        assert Endpoint(url, "", "k")("hello", 0.5) == "m: hello (Bearer k) at 0.5"
        for names, said in (([], "no model"), (["m", "n"], "m, n")):
            _Completions.models[:] = names
            with pytest.raises(InputError, match=f"has {said}; name one by --judge_model"):
                Endpoint(url)("hello")
        for model in ("other", "mute"):
            with pytest.raises(InputError, match="sent no chat completion"):
                Endpoint(url, model)("hello")
        monkeypatch.setattr(judges, "_PAUSE", 0)
        for model, times in (("cut off", 5), ("busy", 5), ("barred", 1)):
            _Completions.asked.clear()
            with pytest.raises(InputError, match="does not answer"):
                Endpoint(url, model)("hello")
            assert _Completions.asked == [model] * times
        server.shutdown()
    with pytest.raises(InputError, match="begins with http"):
        Endpoint("localhost:8000", "m")


@pytest.mark.parametrize(
    ("text", "repeats", "unfinished"),
    [
        ("short", False, False),
        ("<think>so then", False, True),
        ("<think>a</think>b", False, False),
        ("x" * 50 + "one and the same sentence that never ends. " * 200, True, False),
        ("a" * 3000, True, False),
        (LETTERS[:119] + "." + (LETTERS[:120] * 30)[:-7], True, False),
        ("So. " + LETTERS[:500] * 15, True, False),
        (LETTERS[:500] * 7, False, False),
        ("| - | - | - |" * 20, False, False),
        (" ".join(str(number) for number in range(2000)), False, False),
    ],
)
def test_loops_and_unfinished_thinking(text, repeats, unfinished):
    assert (final_text.repeats(text), is_unfinished(text)) == (repeats, unfinished)
