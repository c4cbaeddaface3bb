"""Labels of steps: what is asked of the model, what a line says, and that SFT supervises the signs alone."""

import dataclasses
import json
import types

import numpy as np

from internvl_jax.data import CRITIC_SYSTEM, encode_prompt, get_template, open_prompts
from internvl_jax.data.reading import sources
from internvl_jax.inference import Request, SamplingParams
from internvl_jax.making import at_blank_lines, pairs, responses
from internvl_jax.making.step_labels import StepLabels, signs_of
from internvl_jax.sharding import flatten
from tests.making.pairs_test import CONFIG, Score, folder, read_lines, shared

__all__ = ["folder", "shared"]
PROCESS = dataclasses.replace(CONFIG, method="process", samples=2, completions=3, right_share=0.5)


def in_threes(text):
    return [text[start : start + 3] for start in range(0, len(text), 3)] or [text]


def grade(texts, truths):
    return [Score(0.0, "no time") if len(text) % 5 == 0 else Score(float(len(text) % 2)) for text in texts]


def test_signs_end_at_the_first_wrong_step():
    assert signs_of([1.0, 0.6, 0.5, 1.0], 0.5) == ["+", "+", "-"]
    assert signs_of([0.1, 1.0], 0.0) == ["+", "+"] and signs_of([0.0], 0.0) == ["-"]


def test_a_picture_stands_where_the_question_has_it():
    shown = {"pictures": ("a.png",), "footage": None, "dataset": types.SimpleNamespace(name="d")}
    questions = ("what is <image> here?", "what?")
    labels = StepLabels([types.SimpleNamespace(question=question, **shown) for question in questions], PROCESS)
    for number in range(2):
        labels.add({"number": number, "name": "n", "key": "k", "steps": [(["b"], [1.0])]})
    asked = [json.loads(line)["conversations"][1]["value"] for line in labels.finish()[0]["d"]]
    assert [text.split("\n\n### Sol")[0] for text in asked] == [
        "### Question:\nwhat is <image> here?",
        "### Question:\n<image>\nwhat?",
    ]


def test_steps_join_to_the_response():
    for text in ("a\n\nb\n\n\n\nc", "", "a", "a\n\n", "\n\n\n"):
        assert "".join(at_blank_lines(text)) == text
    assert at_blank_lines("a\n\nb\nc") == ["a\n\n", "b\nc"]


def test_shares_are_those_of_completions(shared, processor, folder):
    prompts = open_prompts(folder / "meta.json")
    summary = pairs.make_pairs(shared, processor, prompts, PROCESS, folder / "out", grade, split=in_threes)
    entries = read_lines(folder / "out" / "responses.jsonl")
    lines = read_lines(folder / "out" / "one_process.jsonl") + read_lines(folder / "out" / "two_process.jsonl")
    labelled = [(entry, parts, shares) for entry in entries for parts, shares in entry["steps"]]
    assert len(lines) == len(labelled) == summary["lines"] > 5
    assert summary["right_steps"] + summary["wrong_steps"] == sum(len(line["conversations"]) // 2 for line in lines)
    for line, (entry, parts, shares) in zip(lines, labelled, strict=True):
        assert "".join(parts) in [each["text"] for each in entry["responses"]] and len(parts) == len(shares)
        system, *turns = line["conversations"]
        assert system == {"from": "system", "value": CRITIC_SYSTEM}
        assert [turn["value"] for turn in turns[1::2]] == signs_of(shares, 0.5)
        assert [turn["value"] for turn in turns[2::2]] == parts[1 : len(turns) // 2]
        picture = "<image>\n" if "image" in line else ""
        asked = prompts[entry["number"]].question
        assert turns[0]["value"] == f"### Question:\n{picture}{asked}\n\n### Solution Process:\n{parts[0]}"

    # What can't be graded doesn't count: of three completions two do.
    assert any(share == 0.5 for _, _, every in labelled for share in every)

    # One of them by hand: the model goes on from there, with the picture, by the streams of that response's step.
    entry = next(entry for entry in entries if entry["number"] == 1)
    graded = list(dict.fromkeys(each["text"] for each in entry["responses"] if each["error"] is None))
    parts, shares = next(each for each in entry["steps"] if "".join(each[0]) != graded[0] and len(each[0]) > 2)
    place = graded.index("".join(parts))
    inputs = encode_prompt(prompts[1], processor)
    begun = processor.begin("".join(parts[:2]))
    request = Request(
        np.concatenate([inputs.tokens_T, np.array(begun, np.int32)]),
        inputs.tiles_GHWC,
        SamplingParams(PROCESS.max_new_tokens, 1.0, PROCESS.top_k),
    )
    seeds = np.random.SeedSequence((PROCESS.seed, 1, 3, place, 2)).generate_state(3)
    sampler = responses.open_sampler(shared, processor, PROCESS)
    (drawn,) = sampler.sample(flatten(shared), [request], 3, np.array([seeds], np.uint32))
    tokens = [[token for token in each.tokens.tolist() if token not in processor.stop_ids] for each in drawn]
    texts = [processor.tokenizer.decode([*begun, *each]) for each in tokens]
    known = [score.accuracy for score in grade(texts, [""] * 3) if score.error is None]
    assert shares[1] == sum(known) / len(known)

    # SFT learns the signs and the ends of the critic's turns, and nothing else.
    for dataset in sources.read_meta(str(folder / "out" / "meta.json")):
        line = read_lines(folder / "out" / f"{dataset.name}.jsonl")[0]
        counts = [8] if "image" in line else []
        template = get_template("internvl2_5")
        tokens_T, supervised_T = template.encode_training(line["conversations"], counts, processor.tokenizer)
        said = processor.tokenizer.decode(tokens_T[supervised_T], skip_special=False)
        assert said == "".join(f"{turn['value']}<|im_end|>" for turn in line["conversations"][2::2])
    assert json.loads((folder / "out" / "meta.json").read_text())["one_process"]["length"] > 0
