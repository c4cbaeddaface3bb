"""The recorded critics (VisualPRM), from messages to the choice: positions, scores, order and best of both families."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from checkpoint_convert import convert, load_released
from internvl_jax.data import (
    CRITIC_SYSTEM,
    IMAGE,
    Message,
    Processor,
    ShownMessages,
    get_template,
    sign_positions,
    split_steps,
    train_bpe,
)
from internvl_jax.errors import InputError
from internvl_jax.inference import AGGREGATIONS, Critic, CriticChoice, load, ranking
from internvl_jax.inference import critic as critic_module
from internvl_jax.sharding import make_mesh

CASES = ("visualprm_internlm2_github", "visualprm_qwen2_github")


class Recorded(Processor):
    """A processor whose pictures are the recorded tiles, which are no pictures any more."""

    def show(self, messages, max_dynamic_patch=None, allow_paths=True):
        ((text, tiles_GHWC, counts),) = (message["content"] for message in messages)
        marked = text if "<image>" in text or not counts else f"<image>\n{text}"
        parts = [part for piece in marked.split("<image>") for part in (IMAGE, piece)][1:]
        counts = tuple(self.image_config.tokens_per_tile * count for count in counts)
        return ShownMessages([Message("user", tuple(parts))], tiles_GHWC, counts, ())


def recorded(model, processor):
    return model, Recorded(processor.image_config, processor.tokenizer, processor.template)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(directory, prm.json, outputs.npz, critic)"""
    directory = request.config.rootpath / "tests/golden" / request.param
    prm = json.loads((directory / "prm.json").read_text(encoding="utf-8"))
    with np.load(directory / "outputs.npz") as outputs:
        return directory, prm, dict(outputs), Critic(*recorded(*load_released(directory, "float32")))


def question(asked, outputs):
    name = asked["pixel_values"]
    tiles = np.zeros((0, 56, 56, 3), np.uint8) if name is None else outputs[name].transpose(0, 2, 3, 1)
    return [{"role": "user", "content": (asked["question"], tiles, asked["tiles_per_image"])}]


def check(critic, prm, outputs):
    for asked in prm["cases"]:
        messages, texts = question(asked, outputs), [each["response"] for each in asked["responses"]]
        scores = critic.score(messages, texts)
        for found, wanted in zip(scores, asked["responses"], strict=True):
            assert len(found) == len(wanted["step_scores"]) == len(wanted["steps"])
            assert np.abs(np.array(found) - wanted["step_scores"]).max() < 2e-5
        values = [AGGREGATIONS["mean"](each) for each in scores]
        assert np.abs(np.array(values) - [each["mean"] for each in asked["responses"]]).max() < 2e-5
        assert ranking(values) == asked["order_by_mean"]
        for how, key in (("mean", "best"), ("min", "best_by_min"), ("last", "best_by_last")):
            assert CriticChoice(critic, how)(messages, texts).best == asked[key]


def test_scores_order_and_best(case):
    _, prm, outputs, critic = case
    check(critic, prm, outputs)


def test_steps_and_positions(case):
    directory, prm, _, _ = case
    tokenizer = Processor.from_released(directory).tokenizer
    template = Processor.from_released(directory).template
    assert prm["system_message"] == CRITIC_SYSTEM
    for each in prm["split"]:
        assert split_steps(each["response"], each["max_steps"]) == each["steps"]
    for each in [*(response for asked in prm["cases"] for response in asked["responses"]), prm["long"]]:
        found = sign_positions(np.array(each["input_ids"]), template, tokenizer)
        assert found.tolist() == each["score_positions"]


@pytest.mark.soak
def test_after_conversion(case, tmp_path):
    """As a model directory of this project, and beyond the context of the training."""
    directory, prm, outputs, _ = case
    convert(directory, tmp_path / "ours")
    critic = Critic(*recorded(*load(tmp_path / "ours", "float32")))
    check(critic, prm, outputs)
    long = prm["long"]
    one = next(asked for asked in prm["cases"] if asked["name"] == "one_image")
    messages = question({**one, "question": long["question"]}, outputs)
    (found,) = critic.score(messages, [long["response"]])
    assert np.abs(np.array(found) - long["step_scores"]).max() < 2e-5


@pytest.mark.soak
def test_on_a_mesh(case):
    """Rows and heads spread over four devices."""
    directory, prm, outputs, _ = case
    mesh = make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])
    check(Critic(*recorded(*load_released(directory, "float32", mesh=mesh))), prm, outputs)


def test_what_is_no_critic(case):
    directory, *_ = case
    model, processor = load_released(directory, "float32")
    policy = dataclasses.replace(processor, template=get_template(processor.template.name))
    with pytest.raises(InputError, match=r"the model given as critic is none: .*system text"):
        Critic(model, policy)
    rng = np.random.default_rng(0)
    texts = ["+-", *("".join(rng.choice([*"abcdefgh"], 9)) for _ in range(2000))]
    stranger = train_bpe(texts, model.config.text.vocab + 9)  # more tokens than the critic has rows for
    with pytest.raises(InputError, match=r"the critic has rows for \d+ tokens, its tokenizer"):
        Critic(model, dataclasses.replace(processor, tokenizer=stranger))


def test_more_responses_than_a_pass_may_have(case, monkeypatch):
    directory, *_ = case
    critic, passes = Critic(*load_released(directory, "float32")), []

    def score(params, encoded, tile_mask_G, rows_2BT, at_BI):
        passes.append(len(at_BI))
        return np.zeros(at_BI.shape)

    monkeypatch.setattr(critic_module, "_TOKENS", 1 << 20)
    critic._score = score
    found = critic.score([{"role": "user", "content": "a"}], [str(number) for number in range(300)])
    assert found == [(0.0,)] * 300 and passes == [256, 64]


def test_one_question_alone(case):
    directory, *_, critic = case
    critic = Critic(*load_released(directory, "float32"))
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    with pytest.raises(InputError, match="the conversation has 3 turns"):
        critic.score(talk, ["d"])
