"""Preference pairs as released: what is read, and one sentence with file and line for each thing that is wrong."""

import json

import pytest

from internvl_jax.data.reading import preferences, sources
from internvl_jax.errors import InputError

DATASET = sources.Dataset("d", "images", "a.jsonl", False, None, 1, None)
PAIR = {"image": "x.png", "question": "what?", "chosen": "a cat", "rejected": "a dog"}


def parse(**fields):
    return preferences.parse_pair(json.dumps({**PAIR, **fields}).encode(), "a.jsonl:3", DATASET)


def test_pair():
    record = parse(answer_gt="cat")
    human = {"from": "human", "value": "what?"}
    answers = [{"from": "gpt", "value": "a cat"}], [{"from": "gpt", "value": "a dog"}]
    dialogues = tuple([human, *answer] for answer in answers)
    assert record == sources.Record("a.jsonl:3", dialogues, ("images/x.png",), (None,))


def test_system_text_and_several_images():
    record = parse(image=["x.png", "y.png"], width_list=[3, 5], height_list=[7, 11], system_prompt="think")
    assert record.images == ("images/x.png", "images/y.png") and record.sizes == ((3, 7), (5, 11))
    for turns in record.dialogues:
        assert turns[0] == {"from": "system", "value": "think"} and len(turns) == 3
    assert parse(image=None).images == ()


def test_an_image_outside_of_the_root():
    with pytest.raises(InputError, match=r"^a.jsonl:3 has the image '../x.png', which is not below the root 'images'"):
        parse(image="../x.png")


def test_both_conversations_begin_with_the_same_tokens(processor):
    record = parse(question="one <image> red", chosen="square", rejected="circle")
    (chosen_T, yes_T), (rejected_T, no_T) = (
        processor.template.encode_training(turns, [2], processor.tokenizer) for turns in record.dialogues
    )
    start = int(yes_T.argmax())
    assert start == no_T.argmax() > 0
    assert chosen_T[:start].tolist() == rejected_T[:start].tolist()
    assert chosen_T[start:].tolist() != rejected_T[start:].tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": None}, 'has no text "question"'),
        ({"question": " \n"}, 'has an empty "question"'),
        ({"chosen": ["a"]}, 'has no text "chosen"'),
        ({"chosen": ""}, 'has an empty "chosen"'),
        ({"rejected": None}, 'has no text "rejected"'),
        ({"rejected": "  "}, 'has an empty "rejected"'),
        ({"rejected": "a cat\n"}, "has equal chosen and rejected responses"),
        ({"image": 3}, 'has an "image" that is neither a path nor a list of paths'),
        ({"system_prompt": 3}, 'has a "system_prompt" that is no text'),
        ({"video": "v.mp4"}, "has an image and a video"),
    ],
)
def test_bad_pair(fields, message):
    with pytest.raises(InputError, match=f"^a.jsonl:3 {message}"):
        parse(**fields)
