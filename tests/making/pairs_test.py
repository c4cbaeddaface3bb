"""Preference pairs: which responses are paired, what is written, and that a killed run ends in the same bytes."""

import collections
import dataclasses
import json
import pathlib
import shutil
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest

from internvl_jax.data.reading import preferences, sources
from internvl_jax.data.reading.prompts import encode_blind, open_prompts, read_accuracies, screen_prompts
from internvl_jax.errors import InputError
from internvl_jax.inference import Request, SamplingParams
from internvl_jax.inference.engine.requests import Vocabulary
from internvl_jax.inference.engine.sampler import Sampler
from internvl_jax.making import pairs, responses
from internvl_jax.making.responses import PairConfig, Response
from internvl_jax.making.resumable import ResumableFolder
from internvl_jax.sharding import bind, flatten

CONFIG = PairConfig(
    method="correctness",
    samples=6,
    temperature=1.0,
    top_k=50,
    max_new_tokens=11,
    max_prompt_tokens=200,
    start_ratio=0.5,
    max_pairs=5,
    length_slack=1.0,
    reward="stub",
    max_broken=0,
    batch_size=12,
    seed=5,
    completions=3,
    right_share=0.0,
)


class Score(NamedTuple):
    accuracy: float
    error: str | None = None


def grade(texts, truths):
    """Right by a rule that random answers meet about half of the time; some cannot be graded."""
    assert len(texts) == len(truths) and set(truths) == {"red"}
    return [Score(0.0, "no time") if len(text) % 7 == 0 else Score(float(len(text) % 2)) for text in texts]


@pytest.fixture(scope="module")
def shared(structure, params, processor):
    """One model for the module, whose answers often end."""
    head = params["lm.head.weight"]
    other = head.at[processor.tokenizer.im_end].multiply(3.0)
    return bind(structure[0], {**params, "lm.head.weight": other})


@pytest.fixture
def folder(tmp_path):
    """Five questions, the second and fourth about a picture, in a meta file of two data sets."""
    noise = np.random.default_rng(1).integers(0, 255, (28, 56, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "p.png")
    lines = [{"question": f"what is {k}?", "answer": "red", "system_prompt": "a square"} for k in range(5)]
    for k in (1, 3):
        lines[k]["image"] = "p.png"
    lines[4]["system_prompt"] = "a circle"
    meta = {}
    for name, part in [("one", lines[:3]), ("two", lines[3:])]:
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in part))
        meta[name] = {"root": str(tmp_path), "annotation": str(tmp_path / f"{name}.jsonl")}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return tmp_path


def make(shared, processor, folder, name="out", **fields):
    config = dataclasses.replace(CONFIG, **fields)
    return pairs.make_pairs(shared, processor, open_prompts(folder / "meta.json"), config, folder / name, grade)


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Pair(NamedTuple):
    """What the two dialogues of a record say."""

    system: str | None
    question: str
    chosen: str
    rejected: str
    images: tuple[str, ...]


def read_pairs(folder):
    made = sources.read_meta(str(folder / "meta.json"))
    lines = [(dataset, json.dumps(line)) for dataset in made for line in read_lines(pathlib.Path(dataset.annotation))]
    assert [sum(d == dataset for d, _ in lines) for dataset in made] == [dataset.length for dataset in made]
    found = []
    for dataset, line in lines:
        record = preferences.parse_pair(line.encode(), dataset.name, dataset)
        (*before, asked, chosen), (*_, rejected) = record.dialogues
        system = before[0]["value"] if before else None
        found.append(Pair(system, asked["value"], chosen["value"], rejected["value"], record.images))
    return found


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# Pairing.


def said(text, tokens=5, right=None, ended=True):
    return Response(text, tokens, ended, None if right is None else float(right))


def test_right_is_paired_with_wrong_only():
    every = [said("a", right=True), said("b", right=True), said("x", right=False), said("y", right=False)]
    every += [said("a", right=True), said("cut", right=True, ended=False), said("broken"), said(" ", right=False)]
    every += [said("x\n", right=True)]
    made = {(chosen.text, rejected.text) for chosen, rejected in pairs.right_and_wrong(every)}
    assert made == {("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("x\n", "y")}


def test_a_whole_response_is_paired_with_its_own_continuation():
    whole = [said("one two"), said("one six"), said("cut", ended=False), said("same")]
    other = [said("one red"), said("one blue"), said("c"), said("same ")]
    made = [(chosen.text, rejected.text) for chosen, rejected in pairs.whole_and_continued(whole, other)]
    assert made == [("one two", "one red"), ("one six", "one blue")]


def test_at_most_so_many_pairs_and_all_responses_have_their_turn():
    right = [said(f"r{k}", 5, True) for k in range(4)]
    wrong = [said(f"w{k}", 5, False) for k in range(7)]
    candidates = pairs.right_and_wrong(right + wrong)
    made = pairs.choose_pairs(candidates, 15, 0, np.random.default_rng(0))
    assert len(made) == len(set(made)) == 15
    uses = collections.Counter(each for pair in made for each in pair)
    assert {uses[each] for each in wrong} <= {1, 2, 3} and {uses[each] for each in right} <= {3, 4}
    assert made == pairs.choose_pairs(candidates, 15, 0, np.random.default_rng(0))
    assert made != pairs.choose_pairs(candidates, 15, 0, np.random.default_rng(1))
    assert len(pairs.choose_pairs(candidates, 100, 0, np.random.default_rng(0))) == 28


def test_lengths_are_balanced_over_questions():
    """Right responses are longer on average; chosen ones are not, and the release's random draw leaves the gap."""
    rng, balance, drawn, made = np.random.default_rng(5), 0, 0, 0
    for _ in range(40):
        right = [said(f"r{k}", int(rng.integers(20, 90)), True) for k in range(13)]
        wrong = [said(f"w{k}", int(rng.integers(10, 70)), False) for k in range(13)]
        candidates = pairs.right_and_wrong(right + wrong)
        for chosen, rejected in pairs.choose_pairs(candidates, 7, balance, rng):
            balance, made = balance + chosen.tokens - rejected.tokens, made + 1
        drawn += sum(candidates[k][0].tokens - candidates[k][1].tokens for k in rng.permutation(169)[:7])
    assert made == 280
    assert abs(balance) / made < 0.5 < 10 < drawn / made


def test_pairs_that_keep_lengths_apart_are_left_out():
    rng = np.random.default_rng(7)
    lengths = np.stack([rng.integers(10, 40, 211), rng.integers(12, 60, 211)], 1)
    for mirrored in (lengths, lengths[:, ::-1]):
        stay = pairs.in_balance(mirrored, 0.1)
        sums = mirrored[stay].sum(axis=0)
        assert abs(sums[0] - sums[1]) <= 0.1 * sums.max() and 106 <= stay.sum() < 211
        # Fewest: with one more of those that went, lengths are apart again.
        excess = abs(mirrored[:, 0] - mirrored[:, 1])
        assert excess[~stay].min() >= np.median(excess[stay])
    assert pairs.in_balance(lengths, 1.0).all()
    assert pairs.in_balance(np.array([[3, 30], [4, 40], [5, 50]]), 0.1).tolist() == [True, True, False]
    assert pairs.in_balance(np.array([[3, 30]]), 0.0).tolist() == [True]
    assert pairs.in_balance(np.zeros((0, 2), np.int64), 0.1).tolist() == []


def test_a_response_is_cut_between_words():
    assert responses.cut("one two three four five", 0.5) == "one two"
    assert responses.cut("one", 0.5) == "" == responses.cut("one two", 0.0)
    assert responses.cut("a  b c", 0.75) == "a  b"


# The whole way, on a model of random weights.


def test_pairs_by_correctness(shared, processor, folder):
    summary = make(shared, processor, folder)
    made = read_pairs(folder / "out")
    entries = read_lines(folder / "out" / "responses.jsonl")
    assert [entry["number"] for entry in entries] == list(range(5))
    assert len(made) == summary["pairs"] > 5
    answered = {entry["number"]: [Response(**each) for each in entry["responses"]] for entry in entries}
    for record in made:
        mine = {each.text: each for each in answered[int(record.question[8])]}
        assert mine[record.chosen].right and mine[record.chosen].ended and mine[record.rejected].wrong
        assert bool(record.images) == (int(record.question[8]) % 2 == 1)
        assert (record.system == "a circle") == (record.question == "what is 4?")
    counts = collections.Counter(record.question for record in made)
    assert max(counts.values()) <= 5
    flat = [each for every in answered.values() for each in every]
    graded = [each.right for each in flat if each.accuracy is not None]
    assert (summary["questions"], summary["responses"]) == (5, 30) and len({each.text for each in flat}) > 15
    assert summary["accuracy"] == sum(graded) / len(graded)
    assert summary["grader_errors"] == 30 - len(graded) == sum(each.error == "no time" for each in flat) > 0
    assert not (folder / "out.partial").exists()

    tight = make(shared, processor, folder, "tight", length_slack=0.05)
    assert (
        tight["pairs"]
        == len(read_pairs(folder / "tight"))
        < summary["pairs"]
        == tight["pairs"] + tight["out_of_balance"]
    )
    apart = [abs(each["chosen_tokens"] - each["rejected_tokens"]) for each in (tight, summary)]
    assert apart[0] < apart[1] and summary["out_of_balance"] == 0

    prompts, accuracies = open_prompts(folder / "meta.json"), read_accuracies(folder / "out" / "accuracies.jsonl")
    inside = [k for k in range(5) if 0.4 <= accuracies[prompts[k].key] <= 0.6]
    assert 0 < len(inside) < 5
    assert screen_prompts(prompts, processor, 200, accuracies, (0.4, 0.6)).numbers.tolist() == inside


def test_a_repeated_question_is_asked_once(shared, processor, folder):
    """The limit of pairs is one of a question, however often lines and `repeat_time` repeat it."""
    (first, *_) = lines = (folder / "one.jsonl").read_text().splitlines()
    (folder / "one.jsonl").write_text("\n".join([*lines, first]) + "\n")
    with open(folder / "two.jsonl", "a") as file:
        file.write(first + "\n")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({name: {**entry, "repeat_time": 2} for name, entry in meta.items()}))
    summary = make(shared, processor, folder, max_pairs=2)
    entries = read_lines(folder / "out" / "responses.jsonl")
    assert [entry["number"] for entry in entries] == [0, 1, 2, 4, 5] and summary["questions"] == 5
    assert len({entry["key"] for entry in entries}) == len(read_lines(folder / "out" / "accuracies.jsonl")) == 5
    assert max(collections.Counter(record.question for record in read_pairs(folder / "out")).values()) == 2


@pytest.mark.parametrize("method", ["correctness", "dropout_ntp"])
def test_a_cut_off_run_ends_in_the_same_bytes(shared, processor, folder, method):
    settings = {"method": method, "max_new_tokens": 7}
    make(shared, processor, folder, "out", **settings)
    whole = contents(folder / "out")
    # What other methods are asked for is no part of it: what an earlier version began goes on.
    assert not {"completions", "right_share"} & json.loads(whole["settings.json"]).keys()
    lines = whole["responses.jsonl"].splitlines(keepends=True)
    shutil.rmtree(folder / "out")
    for kept in (b"", b"".join(lines[:3]), b"".join(lines[:2]) + lines[2][:20]):
        partial = folder / "out.partial"
        partial.mkdir()
        (partial / "settings.json").write_bytes(whole["settings.json"])
        (partial / "responses.jsonl").write_bytes(kept)
        make(shared, processor, folder, "out", **settings)
        assert contents(folder / "out") == whole
        shutil.rmtree(folder / "out")


def test_draws_depend_on_seed_question_and_sample_only(shared, processor, folder):
    def texts(name, **fields):
        make(shared, processor, folder, name, **fields)
        return [
            [each["text"] for each in entry["responses"]] for entry in read_lines(folder / name / "responses.jsonl")
        ]

    few, more, other = texts("a"), texts("b", samples=8), texts("c", seed=4)
    assert [every[:6] for every in more] == few
    assert all(mine != yours for mine, yours in zip(few, other, strict=True))


def test_pairs_by_dropout_ntp(shared, processor, folder):
    line = {"image": "p.png", "question": "what is 9?", "chosen": "a red circle, a blue square", "rejected": None}
    line["system_prompt"] = "a square"
    with open(folder / "two.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    summary = make(shared, processor, folder, method="dropout_ntp", samples=2)
    assert summary["accuracy"] is None and not (folder / "out" / "accuracies.jsonl").exists()
    entries = read_lines(folder / "out" / "responses.jsonl")
    for entry in entries:
        for whole, other in zip(entry["responses"], entry["continuations"], strict=True):
            assert other["text"].startswith(responses.cut(whole["text"], 0.5))
    (*_, last) = made = read_pairs(folder / "out")
    assert len(made) == summary["pairs"] and last.question == "what is 9?" and last.images
    assert last.chosen == line["chosen"] != last.rejected and last.rejected.startswith("a red circle,")

    # The continuation is what the model says after this start without the picture, from the sample's own stream.
    blind = encode_blind(open_prompts(folder / "meta.json")[5], processor, "a red circle,")
    seed = int(np.random.SeedSequence((CONFIG.seed, 5, 1)).generate_state(2)[0])
    sampling = SamplingParams(CONFIG.max_new_tokens, CONFIG.temperature, CONFIG.top_k)
    sampler = Sampler(shared.config, shared.runtime.dtype, Vocabulary.of(processor))
    request = Request(blind.tokens_T, blind.tiles_GHWC, sampling)
    ((drawn,),) = sampler.sample(flatten(shared), [request], 1, np.array([[seed]], np.uint32))
    said = processor.tokenizer.decode([token for token in drawn.tokens.tolist() if token not in processor.stop_ids])
    assert entries[5]["continuations"][0]["text"] == f"a red circle,{said}"


def test_what_is_there_is_not_overwritten_nor_mixed(shared, processor, folder):
    make(shared, processor, folder)
    with pytest.raises(InputError, match=r"out already exists; remove it or give another name"):
        make(shared, processor, folder)
    (folder / "out").rename(folder / "out.partial")
    with pytest.raises(InputError, match=r"out.partial was begun with another seed; go on as it was begun"):
        make(shared, processor, folder, seed=4)
    with open(folder / "two.jsonl", "a") as file:
        file.write('{"question": "and?", "answer": "red"}\n')
    with pytest.raises(InputError, match=r"out.partial was begun with another prompts"):
        make(shared, processor, folder)


def test_two_runs_on_one_folder_are_kept_apart(tmp_path):
    with ResumableFolder(tmp_path / "out", {"seed": 1}, "lines") as first:
        first.append([{"a": 1}])
        with pytest.raises(InputError, match=r"out.partial is being written by process \d+"):
            ResumableFolder(tmp_path / "out", {"seed": 1}, "lines")
    with pytest.raises(InputError, match="begun with another seed"):
        ResumableFolder(tmp_path / "out", {"seed": 2}, "lines")
    with ResumableFolder(tmp_path / "out", {"seed": 1}, "lines") as second:
        assert second.resume([1, 1]) == 1
        second.finish()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lines", "settings.json"]


def test_a_folder_of_the_users_is_not_taken_for_a_begun_one(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "notes").touch()
    with pytest.raises(InputError, match=r"out.partial is in the way and not of this program"):
        ResumableFolder(tmp_path / "out", {}, "lines")
    assert (tmp_path / "out.partial" / "notes").exists()


def test_a_data_set_that_names_no_file_is_refused_before_sampling(shared, processor, folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({"one": meta["one"], "two/three": meta["two"]}))
    with pytest.raises(InputError, match=r"the data set 'two/three' can't name a file; call it something else"):
        make(shared, processor, folder)
    assert not (folder / "out.partial").exists()


def test_bad_input_is_one_sentence(shared, processor, folder):
    with pytest.raises(InputError, match=r"no pair came out of 30 responses to 5 questions"):
        config, prompts = dataclasses.replace(CONFIG, max_new_tokens=1), open_prompts(folder / "meta.json")
        all_wrong = lambda texts, truths: [Score(0.0)] * len(texts)
        pairs.make_pairs(shared, processor, prompts, config, folder / "a", all_wrong)
    assert len((folder / "a.partial" / "responses.jsonl").read_text().splitlines()) == 5
    with pytest.raises(InputError, match=r"needs a grader"):
        pairs.make_pairs(shared, processor, prompts, CONFIG, folder / "b")
    with pytest.raises(InputError, match=r"samples is 1; use at least 2"):
        dataclasses.replace(CONFIG, samples=1)
    with pytest.raises(InputError, match=r"batch_size is 5; use at least the samples of a question, 6"):
        dataclasses.replace(CONFIG, batch_size=5)
    with pytest.raises(InputError, match=r"max_new_tokens is 32700; use with max_prompt_tokens at most 32768"):
        dataclasses.replace(CONFIG, method="process", max_new_tokens=32700)
    PIL.Image.new("RGB", (8, 8)).save(folder / "p.png")
    (folder / "p.png").write_bytes((folder / "p.png").read_bytes()[:-30])
    with pytest.raises(InputError, match=r"2 prompts are broken, more than the 1 allowed"):
        make(shared, processor, folder, max_broken=1)
    assert make(shared, processor, folder, max_broken=2)["broken"] == 2  # goes on with what is there
    with open(folder / "one.jsonl", "a") as file:
        file.write('{"question": "and?", "chosen": "a circle"}\n')
    with pytest.raises(InputError, match=r"one.jsonl:4 has no answer to grade by"):
        make(shared, processor, folder, "d", max_broken=2)
