"""One process leads, the other follows: a model in both answers as recorded, and what was asked for reaches both."""

import collections
import json
import os
import signal
import sys

import ml_dtypes
import numpy as np
import pytest

from checkpoint_convert.released import load_model
from internvl_jax.errors import InputError
from internvl_jax.inference import (
    MODEL_THRESHOLDS,
    Decided,
    Engine,
    Ladders,
    LeadingSampler,
    RemoteFeatures,
    Request,
    Sampler,
    SamplingParams,
    Thresholds,
    VisionTower,
    Vocabulary,
    digest,
    follow_sampler,
)
from internvl_jax.inference.engine.leader import Leader, follow
from internvl_jax.sharding import bind, make_mesh
from tests.adapters import drawn_adapter
from tests.training import lives

LADDERS = Ladders(rows=(4,), prompts=(32,), together=(2,), tiles=(4,), slots=(96,), piece=4)
ONLY = 65  # the one token that a mask lets pass


def allow(tokens):
    bits = np.zeros(10, np.int32)
    bits[ONLY // 32] = 1 << (ONLY % 32)
    return bits


def answer_together(pod, number, folder):
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    case = folder / "case"
    meta = json.loads((case / "meta.json").read_text())
    image = meta["img_context_token_id"]
    model = load_model(case, "float32", make_mesh({"data": 2, "tensor": 2}), image_token_id=image)
    vocabulary = Vocabulary(320, (image, meta["img_start_token_id"], meta["img_end_token_id"]), ())
    if number:
        follow(Engine(model, vocabulary, LADDERS))
        return
    engine = Leader(model, vocabulary, LADDERS)
    inputs, outputs = np.load(case / "inputs.npz"), np.load(case / "outputs.npz")
    tiles = np.split(inputs["pixel_values"].transpose(0, 2, 3, 1)[inputs["image_flags"].ravel() == 1], [2])
    rows = zip(inputs["prompt_input_ids"], inputs["prompt_attention_mask"], strict=True)
    prompts = [tokens[mask == 1] for tokens, mask in rows]
    greedy = [Request(*pair, SamplingParams(max_new_tokens=24)) for pair in zip(prompts, tiles, strict=True)]
    text = np.arange(40, 49, dtype=np.int32)
    sampled = SamplingParams(max_new_tokens=9, temperature=1.0, seed=5)
    others = [
        Request(text, tiles[0][:0], sampled, seeds=(5, 6)),
        Request(text, tiles[0][:0], sampled, allow=allow, priority=-1),
    ]
    ids = [engine.add(request) for request in [*greedy, *others]]
    found = {id: [[], []] for id in ids}
    while engine.busy:
        for token in engine.step():
            found[token.id][token.answer].append(token.token)
            if token.answer == 1 and token.number == 3:
                engine.drop(token.id, 1)
    for _ in range(140):  # more messages than are kept
        engine.add(others[0])
        engine.drop(max(ids) + 1 + _)
        engine.step()
    assert [found[id][0] for id in ids[:2]] == outputs["greedy_tokens"].tolist()
    assert found[ids[3]][0] == [ONLY] * 9
    (alone,) = Engine(load_model(case, "float32", image_token_id=image), vocabulary, LADDERS).run(others[:1])
    assert found[ids[2]][0] == alone[0] and found[ids[2]][1][:3] == alone[1][:3] and len(found[ids[2]][1]) < 9
    with pytest.raises(InputError, match="the prompt has no tokens"):
        engine.add(Request(text[:0], tiles[0][:0], sampled))
    engine.close()


def test_two_processes_answer_as_one(golden, tmp_path):
    (tmp_path / "case").symlink_to(golden / "chat_qwen3_github")
    codes, said = lives.Run(answer_together, 2, tmp_path).ended()
    assert codes == [0, 0], said


class Pipe:
    """In place of a channel, within one process; Ctrl-C is pressed as soon as something was told."""

    def __init__(self):
        self.messages, self.pressed = collections.deque(), False

    def tell(self, message):
        self.messages.append(message)
        if self.pressed:
            os.kill(os.getpid(), signal.SIGINT)

    def hear(self):
        return self.messages.popleft()


def test_whatever_arrays_a_request_has_reach_the_others(structure, params, processor, monkeypatch):
    """Lists of tokens, tiles of bfloat16, features from elsewhere, arrays of another byte order."""
    pipe = Pipe()
    monkeypatch.setattr(sys.modules["internvl_jax.inference.engine.leader"], "Channel", lambda: pipe)
    given = bind(structure[0], params), Vocabulary.of(processor), LADDERS
    leader, follower = Leader(*given), Engine(*given)
    image, sampling = [processor.tokenizer.image_context] * 4, SamplingParams(5)
    pixels_GHWC = np.random.default_rng(0).integers(0, 255, (1, 28, 28, 3), dtype=np.uint8)
    normalised_GHWC, none_GHWC = (pixels_GHWC / 255).astype(ml_dtypes.bfloat16), pixels_GHWC[:0]
    encoded = VisionTower(given[0], (1,)).encode(pixels_GHWC)
    features = tuple(each.astype(ml_dtypes.bfloat16) for each in encoded.features_GPD)
    brought = RemoteFeatures((digest(pixels_GHWC[0]),), np.zeros(1, bool), features)
    rows = [
        Request([*image, 40, 41], pixels_GHWC, sampling),
        Request(np.array([*image, 40, 41], ">i8"), normalised_GHWC, sampling),
        Request(np.array([*image, *image, 40, 41]), np.concatenate([normalised_GHWC, -normalised_GHWC]), sampling),
        Request(np.array([*image, 40, 41]), none_GHWC, sampling, features=brought),
    ]
    wanted = leader.run(rows)
    assert max(map(len, pipe.messages)) < 1.2 * normalised_GHWC.nbytes  # one tile at a time, or the store is too slow
    leader.params = dict(leader.params)
    with pytest.raises(InputError, match="its parameters were changed in one of them"):
        leader.params = {path: value + 0 for path, value in leader.params.items()}
    leader.close()
    told, step = {}, follower.step

    def listen(most):
        for token in step(most):
            told.setdefault(token.id, []).append(token.token)

    monkeypatch.setattr(follower, "step", listen)
    follow(follower)
    assert list(told.values()) == [answer for (answer,) in wanted]
    with pytest.raises(InputError, match="the prompt is float64 of shape"):
        leader.add(Request([0.5], none_GHWC, sampling))


def test_adapters_and_greedy_candidates_reach_the_others(config, monkeypatch):
    pipe, done = Pipe(), []
    monkeypatch.setattr(sys.modules["internvl_jax.inference.engine.leader"], "Channel", lambda: pipe)
    monkeypatch.setattr(Engine, "__init__", lambda self: None)
    for name in ("put_adapter", "drop_adapter", "add"):
        monkeypatch.setattr(Engine, name, lambda self, *given, name=name: done.append((name, *given)))
    lora, own = drawn_adapter(config, 1)
    rounded = {path: each.astype(ml_dtypes.bfloat16) for path, each in own.items()}
    text, none_GHWC = np.arange(40, 49, dtype=np.int32), np.zeros((0, 28, 28, 3), np.uint8)
    leader = Leader()
    for name, given in (("one", own), ("two", rounded)):
        leader.put_adapter(name, lora, given)
        leader.add(Request(text, none_GHWC, SamplingParams(6, 1.0), seeds=(None, 7), adapter=name))
    leader.drop_adapter("one")
    leader.close()
    assert max(map(len, pipe.messages)) < sum(each.nbytes for each in own.values()) / 2
    told = [*done]
    done.clear()
    follow(Engine())
    assert [each[0] for each in done] == [each[0] for each in told] == ["put_adapter", "add"] * 2 + ["drop_adapter"]
    for ours, theirs in zip(told, done, strict=True):
        if ours[0] == "add":
            assert (theirs[1].seeds, theirs[1].adapter) == (ours[1].seeds, ours[1].adapter)
        else:
            assert theirs[1:3] == ours[1:3]
        if ours[0] == "put_adapter":
            assert theirs[3].keys() == ours[3].keys()
            assert all(theirs[3][path].dtype == each.dtype for path, each in ours[3].items())
            assert all(np.array_equal(theirs[3][path], each) for path, each in ours[3].items())


def test_ctrl_c_leaves_all_in_step(structure, params, processor, monkeypatch, ctrl_c):
    pipe, steps, step = Pipe(), collections.Counter(), Engine._step
    monkeypatch.setattr(sys.modules["internvl_jax.inference.engine.leader"], "Channel", lambda: pipe)
    monkeypatch.setattr(Engine, "_step", lambda self, most: (steps.update([id(self)]), step(self, most)))
    given = bind(structure[0], params), Vocabulary.of(processor), LADDERS
    leader, follower = Leader(*given), Engine(*given)
    row = Request(np.arange(40, 49, dtype=np.int32), np.zeros((0, 28, 28, 3), np.uint8), SamplingParams(12))
    number = leader.add(row)
    for _ in range(3):
        leader.step(most=1)
        pipe.pressed = True
        with pytest.raises(KeyboardInterrupt):
            leader.step(most=1)
        pipe.pressed = False
    leader.drop(number)
    answer = leader.run([row])
    leader.close()
    follow(follower)
    assert steps[id(leader)] == steps[id(follower)] > 6
    rows = zip(leader._scheduler.rows, follower._scheduler.rows, strict=True)
    assert all(np.array_equal(ours.held_T, theirs.held_T) for ours, theirs in rows)
    assert follower.run([row]) == answer


def test_how_groups_are_compressed_reaches_the_others(monkeypatch):
    pipe, done = Pipe(), []
    monkeypatch.setattr(sys.modules["internvl_jax.inference.engine.sampler_leader"], "Channel", lambda: pipe)
    monkeypatch.setattr(Sampler, "__init__", lambda self: None)
    monkeypatch.setattr(Sampler, "begin", lambda self, params, requests, *rest: done.append(requests))
    tiles_GHWC = np.random.default_rng(0).integers(0, 255, (3, 28, 28, 3), dtype=np.uint8)
    text, sampling = np.arange(40, 49, dtype=np.int32), SamplingParams(6, 1.0)
    thresholds = (MODEL_THRESHOLDS, Thresholds(relative=1.0), Decided((True, False, True)))
    asked = [Request(text, tiles_GHWC[: 3 - n], sampling, each) for n, each in enumerate(thresholds)]
    leader = LeadingSampler()
    leader.begin({}, asked, 2, 0)
    leader.close()
    assert max(map(len, pipe.messages)) < 1.2 * tiles_GHWC[0].nbytes
    follow_sampler(Sampler(), {})
    ours, theirs = done
    for each, other in zip(ours, theirs, strict=True):
        assert other.thresholds == each.thresholds and other.sampling == each.sampling
        np.testing.assert_array_equal(other.tiles_GHWC, each.tiles_GHWC)
