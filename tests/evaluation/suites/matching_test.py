"""String rules against tables that were recorded from the official evaluation code."""

import json
import math
import pathlib
import time

import pytest

from internvl_jax.data.text import thinking
from internvl_jax.evaluation.suites import (
    box_matching,
    final_text,
    maths_matching,
    options,
    text_matching,
    video_matching,
)

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


def test_options():
    cases = json.loads((GOLDEN / "eval_matching" / "option_inference.json").read_text())["cases"]
    assert len(cases) == 306
    for case in cases:
        asked = case["as_text"], {letter: str(text) for letter, text in case["options"].items()}
        assert (options.infer_option(*asked) or False) == case["inferred"], case
        assert (options.infer_by_letter(*asked) or False) == case["by_letter"], case
        assert (options.infer_by_text(*asked) or False) == case["by_text"], case


@pytest.fixture(scope="module")
def recorded():
    return json.loads((GOLDEN / "eval_matching" / "rules.json").read_text())


def mathvista(case):
    choices = None if case["question_type"] != "multi_choice" else eval(case["choices"])
    found = maths_matching.prefetched(case["prediction"], case["answer"], case["answer_type"], choices)
    true = case["answer"] if choices is None else case["answer_option"]
    right = maths_matching.is_extracted_right(case["prediction"], true, case["answer_type"], choices)
    return found or False, right


def grounding(case):
    box, size = box_matching.parse_box(case["text"]), (case["width"], case["height"])
    pixels = box and box_matching.in_pixels(box, *size)
    overlap = box_matching.iou(pixels, case["target"]) if pixels else 0.0
    return box, pixels, overlap, overlap >= box_matching.HIT


def own_grounding(case):
    box = box_matching.own_box(case["text"], case["width"], case["height"])
    overlap = box_matching.own_iou(box, case["target"])
    return box, overlap, overlap >= box_matching.HIT


def click(case):
    turned = box_matching.click_of_box(case["text"])
    return turned if turned == case["text"] else [1000 * part for part in box_matching.parse_click(turned)]


def sized(answer, prediction):
    return text_matching.distance(prediction, answer), text_matching.anls(prediction, [answer])


# How many cases there are, how ours is asked, and what was recorded.
RULES = {
    "yes_no": (36, lambda c: text_matching.yes_or_no(c["text"]), ["label"]),
    "boxed": (17, lambda c: final_text.boxed_content(c["text"]), ["content"]),
    "mpo_answer": (7, lambda c: final_text.announced_answer(c["text"]), ["for_mcq"]),
    "think_split": (10, lambda c: thinking.split_prediction(c["text"]), ["thinking", "answer"]),
    "mmmu_pro_cot": (8, lambda c: final_text.answer_line(c["text"]), ["extracted"]),
    "video_letter": (
        20,
        lambda c: (video_matching.first_letter(c["text"]), video_matching.first_of_five(c["text"])),
        ["video_mme", "five_letters"],
    ),
    "mvbench_rule": (51, lambda c: video_matching.starts_with_option(c["prediction"], c["answer"]), ["correct"]),
    "vqa_normalize": (32, lambda c: text_matching.normalized(c["text"]), ["normalized"]),
    "relaxed": (24, lambda c: text_matching.relaxed(c["prediction"], c["target"]), ["correct"]),
    "anls_distance": (15, lambda c: sized(c["target"], c["prediction"]), ["normalized_distance", "score"]),
    "vqa_score": (
        16,
        lambda c: (
            text_matching.vqa_matches(c["prediction"], c["answers"]),
            text_matching.vqa_score(c["prediction"], c["answers"]),
        ),
        ["match", "score"],
    ),
    "mathvista_check": (28, mathvista, ["prefetch", "correct_as_result"]),
    "grounding_vlmevalkit": (17, lambda c: (*grounding(c), click(c)), ["parsed", "absolute", "iou", "hit", "click"]),
    "grounding_internvl_repo": (17, own_grounding, ["box", "iou", "hit"]),
    "click_parse": (9, lambda c: box_matching.parse_click(c["text"]) or "error", ["point"]),
    "vsi_option": (24, lambda c: video_matching.vsi_option(c["text"]) or False, ["letter"]),
    "vsi_number": (19, lambda c: video_matching.vsi_number(c["text"]), ["number"]),
    "mra": (22, lambda c: video_matching.relative_accuracy(c["prediction"], c["target"]), ["mra"]),
    "dynamath_parse": (13, lambda c: maths_matching.parse_short(c["text"], c["answer_type"]), ["ok", "value"]),
    "dynamath_preprocess": (5, lambda c: maths_matching.json_of(c["text"]), ["result"]),
    "crpe_rule": (8, lambda c: text_matching.names_option(c["prediction"], c["answer"]), ["correct"]),
    "pope_internvl_repo": (36, lambda c: "no" if text_matching.denies(c["text"]) else "yes", ["label"]),
}


@pytest.mark.parametrize("name", RULES)
def test_rule(name, recorded):
    count, ours, fields = RULES[name]
    assert len(recorded[name]) == count and recorded.keys() == RULES.keys()
    # The repository computes boxes in float32, the rest is exact but for the last digits.
    tolerance = 1e-6 if name == "grounding_internvl_repo" else 1e-9
    for case in recorded[name]:
        found = ours(case)
        for one, field in zip(found if len(fields) > 1 else (found,), fields, strict=True):
            assert same(one, case[field], tolerance), (name, field, one, case)


@pytest.mark.parametrize("loop", ["1, ", "[", "(*", " ", "\n", "answer ", "<answer>A", "1", "A ", "x=1."])
def test_loops_take_no_time(loop):
    """What a model that has lost its thread goes on writing."""
    start = time.process_time()
    for before in ("", "[[1, ", "The answer is"):
        text = before + loop * (8000 // len(loop)) + "x"
        box_matching.own_box(text, 10, 10)
        box_matching.parse_box(text)
        box_matching.parse_click(text)
        video_matching.vsi_option(text)
        video_matching.vsi_number(text)
        options.infer_option(text, {"A": "red", "B": "x"})
        final_text.boxed_content(text)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("loop", ["<answer>A", "</answer><answer>B", "<answer>7", "答案A"])
def test_long_loops_take_no_time(loop):
    """As long as an answer with thinking may be."""
    start = time.process_time()
    for text in (loop * (200_000 // len(loop)), "</answer>" + loop * (200_000 // len(loop))):
        video_matching.vsi_option(text)
        video_matching.vsi_number(text)
    assert time.process_time() - start < 5  # tenths; with the square of the length it would be minutes


@pytest.mark.parametrize(
    ("text", "right"),
    [("B", True), ("(B) red", True), ("I say (B).", True), ("A) not B)", False), ("(B", False), ("", False)],
)
def test_the_letter_of_mlvu(text, right):
    assert video_matching.is_letter_of(text, "(B) red") == right


def test_a_whole_number_beyond_any_float():
    assert not maths_matching.same_expression("9999**9999", "0.5")


def same(found, wanted, tolerance):
    if isinstance(wanted, float | int) and not isinstance(wanted, bool):
        return math.isclose(found, wanted, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(same(*pair, tolerance) for pair in zip(found, wanted))
    return found == wanted
