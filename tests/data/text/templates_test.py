"""Prompts, token ids and label masks of the released code, and where ours is stricter."""

import json
import pathlib

import numpy as np
import pytest

from internvl_jax.data.text import templates
from internvl_jax.data.text.tokenizer import Tokenizer
from internvl_jax.errors import InputError

GOLDEN = pathlib.Path(__file__).parents[2] / "golden/templates"
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))
TRAINING = json.loads((GOLDEN / "training.json").read_text(encoding="utf-8"))
TEMPLATE = templates.get_template("internvl2_5")
# The release turns "<|im_end|>" in a user's text into the token; we do not (tested below).
DIFFERENT = ("special_text_in_user",)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(GOLDEN / "qwen_subset")


def talk(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def named(name):
    return next(case for case in TRAINING if case["name"] == name)


def test_the_default_system_prompt_is_the_released_one():
    assert TEMPLATE.default_system == PROMPTS["default_system"]


@pytest.mark.parametrize("case", PROMPTS["prompts"], ids=lambda case: case["name"])
def test_prompts_equal_the_released_ones(case, tokenizer):
    roles = ("user", "assistant")
    messages = [templates.Message(roles[i], (text,)) for i, text in case["messages"] if text is not None]
    tokens = TEMPLATE.encode_prompt(messages, (), tokenizer, system=case["system"])
    assert tokens.dtype == np.int32
    assert tokens.tolist() == case["input_ids"]
    assert tokenizer.decode(tokens, skip_special=False) == case["prompt"]


GOOD = [case for case in TRAINING if "error" not in case and case["name"] not in DIFFERENT]


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case["name"])
def test_training_ids_and_masks_equal_the_released_ones(case, tokenizer):
    tokens, supervised = TEMPLATE.encode_training(
        case["conversations"], case["num_image_token_list"], tokenizer, extra_placeholders_are_text=True
    )
    assert tokens.dtype == np.int32 and supervised.dtype == bool
    assert tokens.tolist() == case["input_ids"]
    assert supervised.astype(int).tolist() == case["supervised"]


def test_enough_released_cases_are_compared():
    assert len(GOOD) >= 20 and len(PROMPTS["prompts"]) >= 10


def test_special_strings_of_a_user_stay_text(tokenizer):
    """The same characters as in the release, but no token that ends the turn early."""
    case = named("special_text_in_user")
    tokens, _ = TEMPLATE.encode_training(case["conversations"], (), tokenizer)
    as_text = tokenizer.decode(tokens, skip_special=False)
    assert as_text == tokenizer.decode(case["input_ids"], skip_special=False)
    assert case["input_ids"].count(tokenizer.im_end) == 4
    assert tokens.tolist().count(tokenizer.im_end) == 3
    assert tokenizer.pad not in tokens


def test_picture_strings_in_text_are_not_pictures(tokenizer):
    text = "<img><IMG_CONTEXT></img>"
    tokens, supervised = TEMPLATE.encode_training(talk(f"<image>\n{text}", f"{text} <image>"), (5,), tokenizer)
    assert tokens.tolist().count(tokenizer.image_context) == 5
    assert tokenizer.decode(tokens[supervised], skip_special=False) == f"{text} <image><|im_end|>"


def test_system_of_a_conversation_comes_before_the_argument_and_the_default(tokenizer):
    user = templates.Message("user", ("Hi",))
    own = TEMPLATE.encode_prompt([templates.Message("system", ("S",)), user], (), tokenizer, system="other")
    assert own.tolist() == TEMPLATE.encode_prompt([user], (), tokenizer, system="S").tolist()
    assert TEMPLATE.default_system in tokenizer.decode(TEMPLATE.encode_prompt([user], (), tokenizer))


def test_training_tokens_start_with_the_prompt_of_the_same_turns(tokenizer):
    """What the model is asked at inference is what it saw in training, pictures included."""
    prompt = TEMPLATE.encode_prompt([templates.Message("user", (templates.IMAGE, "\nWhat is this?"))], (7,), tokenizer)
    tokens, supervised = TEMPLATE.encode_training(talk("<image>\nWhat is this?", "A cat."), (7,), tokenizer)
    assert tokens[: len(prompt)].tolist() == prompt.tolist()
    assert not supervised[: len(prompt)].any()
    assert supervised[len(prompt) : -1].all() and not supervised[-1]


def test_newlines_around_the_header_are_encoded_as_in_the_release(tokenizer):
    """There each turn is encoded as one string; "user\\n" and "\\n\\nHi" share a token."""
    tokens, supervised = TEMPLATE.encode_training(talk("\n\nHi", "\n\nHi"), (), tokenizer)
    for role in ("user", "assistant"):
        turn = tokenizer.encode_special(f"<|im_start|>{role}\n\n\nHi<|im_end|>\n")
        assert any(tokens[i : i + len(turn)].tolist() == turn for i in range(len(tokens)))
    assert tokenizer.decode(tokens[supervised], skip_special=False) == "Hi<|im_end|>"


def test_a_single_picture_without_placeholder_comes_first(tokenizer):
    system = [{"from": "system", "value": "S"}]
    with_tag = TEMPLATE.encode_training(system + talk("<image>\nWhat?", "A cat.", "And?", "A dog."), (3,), tokenizer)
    without = TEMPLATE.encode_training(system + talk("What?", "A cat.", "And?", "A dog."), (3,), tokenizer)
    np.testing.assert_array_equal(with_tag[0], without[0])
    np.testing.assert_array_equal(with_tag[1], without[1])


@pytest.mark.parametrize(
    "conversations, counts, message",
    [
        (talk("<image> ?", "x"), (4, 4), "1 <image> placeholders but 2 pictures"),
        (talk("<image> <image> ?", "x"), (4,), "2 <image> placeholders but 1 pictures"),
        (talk("<image> ?", "x"), (), "1 <image> placeholders but 0 pictures"),
        (talk("?", "x"), (4, 4), "0 <image> placeholders but 2 pictures"),
        (named("function_role")["conversations"], (), "turn 2 of a record"),
        ([{"from": "human", "value": 3}], (), "turn 0 of a record"),
        ([{"from": ["human"], "value": "x"}], (), "turn 0 of a record"),
        (["hi"], (), "turn 0 of a record"),
        ([], (), "no gpt turn"),
        (talk("?"), (), "no gpt turn"),
        ([{"from": "pretrain", "value": "a"}, *talk("b", "c")], (), "pretrain text stands alone"),
        (talk("b", "c") + [{"from": "system", "value": "late"}], (), "message 2 of a conversation has role 'system'"),
    ],
)
def test_bad_records_are_refused(conversations, counts, message, tokenizer):
    with pytest.raises(InputError, match=message):
        TEMPLATE.encode_training(conversations, counts, tokenizer)


def test_a_prompt_with_another_number_of_pictures_is_refused(tokenizer):
    with pytest.raises(InputError, match="1 picture slots but 2 pictures"):
        TEMPLATE.encode_prompt([templates.Message("user", (templates.IMAGE, "x"))], (3, 3), tokenizer)
    with pytest.raises(InputError, match="no messages"):
        TEMPLATE.encode_prompt([], (), tokenizer)


def test_unknown_templates_are_refused():
    with pytest.raises(InputError, match="'internlm2-chat' is unknown; known are internvl2_5"):
        templates.get_template("internlm2-chat")
