"""The template of GPT-OSS: recorded prompts and targets, channels written and read back, and where ours is stricter."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from checkpoint_convert.released import load_processor
from internvl_jax.data import ImageConfig, Message, Processor, Tokenizer, get_template, split_thinking
from internvl_jax.data.reading import check
from internvl_jax.data.rows import packing, pipeline
from internvl_jax.data.rows.batch import Sample
from internvl_jax.data.text import templates
from internvl_jax.errors import InputError

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / "golden/templates/gpt_oss.json").read_text(encoding="utf-8"))
TEMPLATE = get_template("internvl3_5_gpt_oss")
IMAGE = ImageConfig(
    tile_size=28, tokens_per_tile=5, min_tiles=1, max_tiles=1, thumbnail=False, apply_exif=False, max_pixels=10_000
)
CONTROL = ("start", "end", "message", "channel", "return", "endoftext")
FINAL = "<|start|>assistant<|channel|>final<|message|>"


@pytest.fixture(scope="module")
def tokenizer(gpt_oss_files):
    return Tokenizer.load(gpt_oss_files)


@pytest.fixture(scope="module")
def process(tokenizer):
    return Processor(IMAGE, tokenizer, TEMPLATE)


def text_of(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special=False)


def talk(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def test_the_default_system_text_is_the_released_one():
    assert TEMPLATE.default_system == GOLDEN["default_system"]
    assert TEMPLATE.with_reasoning("low") == TEMPLATE


@pytest.mark.parametrize("case", GOLDEN["prompts"], ids=lambda case: case["name"])
def test_prompts_equal_the_released_ones(case, tokenizer):
    """But for earlier answers, which the release writes without a channel, unlike its training data."""
    roles = ("user", "assistant")
    messages = [Message(roles[i], (text,)) for i, text in case["messages"] if text is not None]
    tokens = TEMPLATE.encode_prompt(messages, (), tokenizer, system=case["system"])
    wanted = case["prompt"]
    for i, text in case["messages"]:
        if i == 1 and text is not None:
            assert f"<|start|>assistant{text}<|" in wanted
            wanted = wanted.replace(f"<|start|>assistant{text}<|", f"{FINAL}{text}<|")
    assert text_of(tokenizer, tokens) == wanted
    assert tokenizer.token_id(case["stop"]) == tokenizer.token_id(TEMPLATE.stop)


SOUND = [case for case in GOLDEN["training"] if "segments" in case["with_think"] and case["name"] != "function_role"]


def runs(tokens, supervised, tokenizer):
    """[[text, supervised], ...] with neighbours that agree joined."""
    borders = np.flatnonzero(np.diff(supervised)) + 1
    parts = zip(np.split(tokens, borders), np.split(supervised, borders), strict=True)
    return [[text_of(tokenizer, part), bool(flags[0])] for part, flags in parts]


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case["name"])
def test_training_segments_equal_the_released_ones(case, tokenizer):
    """Of the released function with thinking, but for the end of answers before the last: there it writes <|return|>,
    which the model would then see in the middle of conversations, where inference has <|end|>."""
    tokens, supervised = TEMPLATE.encode_training(
        case["conversations"], case["num_image_token_list"], tokenizer, extra_placeholders_are_text=True
    )
    wanted = [list(segment) for segment in case["with_think"]["segments"]]
    for segment in wanted[:-1]:
        segment[0] = segment[0].replace("<|return|>", "<|end|>")
    assert wanted[-1][0].endswith("<|return|>")
    assert runs(tokens, supervised, tokenizer) == wanted


def test_the_released_function_without_thinking_differs_in_the_last_token_only(tokenizer):
    """It chooses between <|end|> and <|return|> by a variable that its loop over pictures left behind, and fails for
    text alone. All else is the same where nothing is thought; where the stale variable happens to mean the last turn
    of a conversation of one, the end is too."""
    agree = []
    for case in SOUND:
        if case["name"] == "r1_thinking":  # there the tags stay text
            continue
        if not case["num_image_token_list"]:
            assert case["plain"]["error"].startswith("UnboundLocalError")
            continue
        tokens, _ = TEMPLATE.encode_training(
            case["conversations"], case["num_image_token_list"], tokenizer, extra_placeholders_are_text=True
        )
        ours, theirs = text_of(tokenizer, tokens), "".join(text for text, _ in case["plain"]["segments"])
        assert ours.endswith("<|return|>")
        assert ours.removesuffix("<|return|>") == theirs.removesuffix("<|return|>").removesuffix("<|end|>")
        agree.append(ours == theirs)
    assert len(agree) >= 8 and set(agree) == {False, True}


def test_enough_released_cases_are_compared():
    assert len(SOUND) >= 17 and len(GOLDEN["prompts"]) >= 10


def test_return_stands_once_at_the_very_end(tokenizer):
    tokens, supervised = TEMPLATE.encode_training(talk("a", "b", "c", "<think>d</think>e"), (), tokenizer)
    ends = {name: np.flatnonzero(tokens == tokenizer.token_id(f"<|{name}|>")) for name in ("end", "return")}
    assert ends["return"].tolist() == [len(tokens) - 1] and supervised[-1]
    assert text_of(tokenizer, tokens[supervised]) == (
        "<|channel|>final<|message|>b<|end|>"
        "<|channel|>analysis<|message|>d<|end|><|start|>assistant<|channel|>final<|message|>e<|return|>"
    )


def test_training_tokens_start_with_the_prompt_of_the_same_turns(tokenizer):
    said = [
        Message("user", (templates.IMAGE, "\nWhat?")),
        Message("assistant", ("A cat.",)),
        Message("user", ("And?",)),
    ]
    tokens, supervised = TEMPLATE.encode_training(talk("<image>\nWhat?", "A cat.", "And?", "No."), (7,), tokenizer)
    for turns in (said[:1], said):
        prompt = TEMPLATE.encode_prompt(turns, (7,), tokenizer)
        assert tokens[: len(prompt)].tolist() == prompt.tolist() and supervised[len(prompt)]


def test_special_strings_of_users_and_models_stay_text(tokenizer):
    evil = "".join(f"<|{name}|>" for name in CONTROL) + "<img><IMG_CONTEXT></img>"
    plain = TEMPLATE.encode_training(talk("x", "x", "x", "<think>x</think>x"), (), tokenizer)[0]
    tokens = TEMPLATE.encode_training(talk(evil, evil, evil, f"<think>{evil}</think>{evil}"), (), tokenizer)[0]
    for name in (*(f"<|{name}|>" for name in CONTROL), "<img>", "<IMG_CONTEXT>", "</img>"):
        assert np.sum(tokens == tokenizer.token_id(name)) == np.sum(plain == tokenizer.token_id(name))
    assert text_of(tokenizer, tokens).count(evil) == 5


@pytest.mark.parametrize("effort", ["medium", "high"])
def test_more_reasoning_is_asked_for_in_the_system_text(process, effort):
    asked = process.with_reasoning(effort)
    tokens = asked([{"role": "user", "content": "Hi"}]).tokens_T
    system = GOLDEN["default_system"].replace("Reasoning: low", f"Reasoning: {effort}")
    assert system.replace("channels: final", "channels: analysis, final") in text_of(process.tokenizer, tokens)
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Hi"}]
    assert asked(own).tokens_T.tolist() == process(own).tokens_T.tolist()


def test_unknown_efforts_are_refused(process):
    with pytest.raises(InputError, match=r"'huge' is unknown .* use one of low, medium, high"):
        process.with_reasoning("huge")
    with pytest.raises(InputError, match="'high' is unknown to the chat template 'internvl2_5'; leave it out"):
        get_template("internvl2_5").with_reasoning("high")


def test_a_tokenizer_of_another_family_is_refused(tokenizer):
    """Its markup would become text without a word."""
    with pytest.raises(
        InputError, match=r"'internvl2_5' ends answers in <\|im_end\|>, a token that the tokenizer lacks"
    ):
        Processor(IMAGE, tokenizer, get_template("internvl2_5"))


def test_stop_ids_end_an_answer(process, tokenizer):
    assert process.stop_ids == (tokenizer.token_id("<|return|>"),)


def test_the_tokenizer_survives_saving(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again, text = Tokenizer.load(tmp_path), "Élan 12345 naïve 猫🐈\n\n<|end|> <ref>x</ref>"
    assert (again.eos, again.pad, again.encode(text)) == (tokenizer.eos, tokenizer.pad, tokenizer.encode(text))
    assert tokenizer.decode(again.encode(text)) == text
    assert len(tokenizer.encode("1234")) > len(tokenizer.encode("123"))  # three digits at most, in this vocabulary


def said(process, markup):
    """Pieces of a model's turn, read back token by token."""
    stream, pieces = process.decode_stream(), []
    for token in process.tokenizer.encode_special(markup):
        pieces.append(stream.feed(token))
        if stream.ended:
            return "".join(pieces), True
    return "".join([*pieces, stream.finish()]), False


ANALYSIS, ANSWER = "<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("markup", "text", "ended"),
    [
        ("<|channel|>final<|message|>Paris 猫.<|return|>", "Paris 猫.", False),
        ("<|channel|>final<|message|>Paris.<|end|><|start|>user<|message|>More", "Paris.", True),
        (f"{ANALYSIS}2+2<|end|>{ANSWER}4<|return|>", "<think>\n2+2\n</think>\n\n4", False),
        (f"{ANALYSIS}a<|end|><|start|>assistant{ANALYSIS}b<|end|>{ANSWER}c", "<think>\na\n\nb\n</think>\n\nc", False),
        (f"<|channel|>commentary to=x<|message|>a<|end|>{ANSWER}c", "<think>\na\n</think>\n\nc", False),
        (f"{ANALYSIS}cut", "<think>\ncut", False),
        ("<|channel|>final", "", False),
        ("no markup at all<|end|>never", "no markup at all", True),
        ("", "", False),
    ],
)
def test_channels_are_read_back(process, markup, text, ended):
    assert said(process, markup) == (text, ended)


@pytest.mark.parametrize("text", ["plain", "<think>\none\ntwo\n</think>\n\nthree", "3, 2, 1\n", "", "<ref>猫</ref>"])
def test_written_and_read_back_it_is_the_same_text(process, text):
    items = TEMPLATE.speech.items([text], process.tokenizer)
    stream = process.decode_stream()
    tokens = process.tokenizer.encode_items(items)
    assert "".join([*map(stream.feed, tokens), stream.finish()]) == text


@pytest.mark.parametrize(
    ("begun", "markup"),
    [
        ("", ""),
        ("Par", "<|channel|>final<|message|>Par"),
        ("<think>\n2+2 is", f"{ANALYSIS}2+2 is"),
        ("<think>", ANALYSIS),
        ("<think>\n2+2\n</think>\n\nIt is", f"{ANALYSIS}2+2<|end|>{ANSWER}It is"),
    ],
)
def test_an_answer_goes_on_where_it_stops(process, begun, markup):
    """In the channel that it stops in; read back, it starts as it was begun."""
    user = [Message("user", ("What?",))]
    head = TEMPLATE.encode_prompt(user, (), process.tokenizer).tolist()
    tokens = TEMPLATE.encode_prompt(user, (), process.tokenizer, begun=begun).tolist()
    assert tokens[: len(head)] == head and text_of(process.tokenizer, tokens[len(head) :]) == markup
    stream = process.decode_stream()
    assert "".join([*map(stream.feed, tokens[len(head) :]), stream.finish()]).strip() == begun


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("answer <think>x</think>", ("", "answer <think>x</think>")),
        ("<think>\nwhy\n</think>\n\nso", ("why", "so")),
        ("\n<think></think>so ", ("", "so ")),
        ("<think>endless", ("endless", "")),
        (" ", ("", " ")),
    ],
)
def test_thinking_and_answer(text, parts):
    assert split_thinking(text) == parts


def test_a_sample_is_shown_with_its_markup(process, tokenizer):
    tokens, supervised = TEMPLATE.encode_training(talk("<image>\nWhat?", "A cat."), (5,), tokenizer)
    sample = Sample("f:1", tokens, supervised, np.zeros((1, 28, 28, 3), np.uint8))
    shown = check.render_sample(sample, process)
    assert "user<|message|><img><IMG_CONTEXT> x 5</img>\nWhat?<|end|><|start|>assistant>>><|channel|>final" in shown
    assert shown.endswith("A cat.<|return|><<<")


def test_checked_and_packed_as_any_other(tiny, processor, tokenizer):
    """Every answer of the folder, and nothing else, is what the loss asks for."""
    process = dataclasses.replace(processor, tokenizer=tokenizer, template=TEMPLATE)
    budgets = packing.PackingConfig(token_budget=256, tile_budget=11, max_open=3)
    assert check.check(tiny.meta, process, budgets, decode=True, render=1).problems == []
    tiny.write_meta(texts=tiny.entries["texts"])
    options = {"weighting": "square", "seed": 5, "over_long": "error", "max_skipped": 0, "cache_dir": None}
    config = pipeline.PipelineConfig(
        tiny.meta, "conversations", **dataclasses.asdict(budgets), pack=True, workers=0, threads=0, **options
    )
    made, asked = pipeline.Pipeline(config, process), ""
    for number in range(made.plan.rows(0)):
        row, _ = made.row(number)
        asked += text_of(tokenizer, row.targets_BT[row.weights_BT > 0])
    assert asked.count("<|channel|>final<|message|>") == 22
    assert asked.count("<|return|>") == asked.count("<|end|>") == 11 and "user" not in asked


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("case", ["chat_gptoss_github", "hf_gptoss"])
def test_released_directories_bring_their_template(golden, gpt_oss_files, tmp_path, case, named):
    """The HF format does not name one: the family decides."""
    values = json.loads((golden / case / "config.json").read_text())
    assert ("template" in values) == (case == "chat_gptoss_github")
    if not named:
        values.pop("template", None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    for file in gpt_oss_files.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    process = load_processor(tmp_path)
    assert process.template == TEMPLATE
    again = Processor.from_dict(json.loads(json.dumps(process.to_dict())), tmp_path)
    assert (again.template, again.image_config) == (process.template, process.image_config)
    assert json.dumps(dataclasses.asdict(process.template))  # a part of the length index's key
    (tmp_path / "config.json").write_text(json.dumps(values | {"template": "internvl9"}))
    with pytest.raises(InputError, match="'internvl9' is unknown; known are internvl2_5, internvl3_5_gpt_oss"):
        load_processor(tmp_path)
