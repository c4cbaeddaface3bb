"""Recorded answers among others: whoever joins and leaves beside them, on any mesh, in chunks or whole."""

import dataclasses
import math
import os

import jax
import numpy as np
import pytest

from checkpoint_convert.released import load_bare
from internvl_jax.evaluation import compare, image_token_id, read_case
from internvl_jax.inference import Engine, Ladders, Request, SamplingParams, Thresholds, Vocabulary
from internvl_jax.inference.engine.leader import Leader, follow
from tests.training import lives

MESHES = {
    "one device": {},
    "tensor=2": {"tensor": 2},
    "tensor=4": {"tensor": 4},
    "data=2,tensor=2": {"data": 2, "tensor": 2},
    "expert=2,tensor=2": {"expert": 2, "tensor": 2},
}
CASES = (
    *("chat_qwen3_github", "chat_qwen3moe_github", "chat_gptoss_github"),
    *("hf_qwen3", "hf_qwen3moe", "hf_gptoss", "flash_qwen3_github"),
)
# `make soak` has all of them on every mesh.
SOME = {("chat_qwen3_github", "tensor=2"), ("hf_gptoss", "expert=2,tensor=2")}
SOAK = pytest.mark.soak


def load(golden, case, sizes):
    """A recorded model on a mesh, what it was given, and what it said."""
    inputs, outputs, meta = read_case(golden / case)
    devices = jax.devices()[: math.prod(sizes.values())]
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=devices) if sizes else None
    return load_bare(golden / case, "float32", image_token_id(meta), mesh), inputs, outputs


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        pytest.param(case, MESHES[mesh], id=f"{case}-{mesh}", marks=() if (case, mesh) in SOME else SOAK)
        for case in CASES
        if case != "flash_qwen3_github"
        for mesh in MESHES
    ],
)
def test_any_mesh_answers_as_recorded(golden, case, sizes):
    model, inputs, outputs = load(golden, case, sizes)
    names = ("greedy_tokens", "greedy_tokens_eos", "greedy_scores")
    inputs = {name: array for name, array in inputs.items() if name != "labels"}  # answers alone are compared here
    report = compare(model, inputs, {name: outputs[name] for name in names}, chunk=16)
    assert report["greedy_tokens_equal"] and report["greedy_tokens_eos_equal"], report


def recorded(model, inputs, outputs):
    """The recorded requests, each with its recorded greedy tokens, or None where thresholds are others."""
    tiles = inputs["pixel_values"].transpose(0, 2, 3, 1)
    wanted = outputs["greedy_tokens"].tolist()
    sampling = SamplingParams(max_new_tokens=len(wanted[0]))
    if "thresholds64" in inputs:
        pairs = [Thresholds(*pair) for pair in inputs["thresholds64"].tolist()]
        tokens_T = inputs["input_ids"][0].astype(np.int32)
        return [(Request(tokens_T, tiles, sampling, pair), None if k else wanted[0]) for k, pair in enumerate(pairs)]
    if "image_flags" in inputs:
        tiles = tiles[inputs["image_flags"].ravel().astype(bool)]
    rows = zip(inputs["prompt_input_ids"], inputs["prompt_attention_mask"].astype(bool), strict=True)
    prompts = [tokens[real].astype(np.int32) for tokens, real in rows]
    counts = [np.sum(tokens == model.config.image_token_id) // model.config.tokens_per_tile for tokens in prompts]
    own = np.split(tiles, np.cumsum(counts)[:-1])
    return [(Request(*row, sampling), tokens) for *row, tokens in zip(prompts, own, wanted, strict=True)]


def by_seeds(requests):
    """The requests, each answered at temperature 1 by a seed of its own."""
    drawn = lambda row, seed: dataclasses.replace(row.sampling, temperature=1.0, seed=seed)
    return [dataclasses.replace(row, sampling=drawn(row, 5 + number)) for number, row in enumerate(requests)]


def make_engine(model, requests, chunk, kind=Engine):
    longest = max(len(row.tokens_T) + row.sampling.max_new_tokens for row in requests)
    ladders = Ladders(classes=((8, -(-longest // 32) * 32),), chunk=chunk)
    return kind(model, Vocabulary(model.config.text.vocab, (), ()), ladders)


def among(engine, requests, image, rng):
    """The answers to requests that stand among seven others at a time, which come, end and are dropped at random."""
    waiting, others, ids = list(enumerate(requests)), set(), {}
    found = [[] for _ in requests]
    rng.shuffle(waiting)
    while waiting or engine.busy:
        while waiting and len(others) < 7:
            sampling = SamplingParams(int(rng.integers(1, 20)), 1.0, seed=int(rng.integers(1000)))
            tokens_T = rng.choice([token for token in range(3, 90) if token != image], int(rng.integers(1, 30)))
            others.add(engine.add(Request(tokens_T.astype(np.int32), requests[0].tiles_GHWC[:0], sampling)))
        if waiting and rng.random() < 0.3:
            number, row = waiting.pop()
            ids[engine.add(row)] = number
        if others and rng.random() < 0.1:
            engine.drop(others.pop())
        for token in engine.step(most=int(rng.integers(1, 4))):
            if token.id in ids:
                found[ids[token.id]].append(token.token)
            elif token.end:
                others.discard(token.id)
    return found


@pytest.fixture(scope="module")
def by_seed():
    """What each case answers, as the first mesh says it alone."""
    return {}


@SOAK
@pytest.mark.parametrize("chunk", [16, None], ids=["in chunks", "whole"])
@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("case", CASES)
def test_seven_others_change_nothing(golden, by_seed, case, sizes, chunk):
    model, inputs, outputs = load(golden, case, sizes)
    rows = recorded(model, inputs, outputs)
    requests = [row for row, _ in rows]
    engine = make_engine(model, requests, chunk)
    asked = [*requests, *by_seeds(requests)]
    alone = [engine.run([row])[0][0] for row in asked]
    for (_, wanted), answer in zip(rows, alone[: len(rows)], strict=True):
        assert wanted in (None, answer)
    assert alone == by_seed.setdefault(case, alone)
    for seed in range(2):
        assert among(engine, asked, model.config.image_token_id, np.random.default_rng(seed)) == alone


def answer_over_two(pod, number, golden):
    """Every case on a mesh of two processes, beside one device of the first."""
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    for case in CASES:
        sizes = {"data": 2, "tensor": 2} if "gptoss" in case else {"tensor": 4}
        model, inputs, outputs = load(golden, case, sizes)
        rows = recorded(model, inputs, outputs)
        requests = [row for row, _ in rows]
        asked, image = [*requests, *by_seeds(requests)], model.config.image_token_id
        for chunk in (16, None):
            if number:
                follow(make_engine(model, requests, chunk))
                continue
            engine = make_engine(model, requests, chunk, Leader)
            alone = [engine.run([row])[0][0] for row in asked]
            together = among(engine, asked, image, np.random.default_rng(0))
            engine.close()
            single = load_bare(golden / case, "float32", image)
            here = make_engine(single, requests, chunk)
            assert together == alone == [here.run([row])[0][0] for row in asked]
            for (_, wanted), answer in zip(rows, alone[: len(rows)], strict=True):
                assert wanted in (None, answer)


@SOAK
def test_two_processes_answer_as_recorded(golden):
    codes, said = lives.Run(answer_over_two, 2, golden).ended()
    assert codes == [0, 0], said
